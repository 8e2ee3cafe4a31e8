"""Whose request it is: the queue is fair among tenants, and the prefix cache keeps them apart."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kserve_llamacpp.engine_client.generation import Request
from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import GenerationRequest

HEADER = "x-tenant"
_TENANT = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
_HASH_DIGITS = 32
_KEYS = ("x-api-key", "api-key", "authorization")  # the most telling first

PrefixSharing = Literal["tenant", "all"]


@dataclass(frozen=True)
class Tenant:
    """Whose a request is: `name` for the queue, `domain` for the prefix cache.

    A domain comes from a header that a gateway can set or check, never from the body: whoever may
    write a body could name another's. Requests without one have the domain "" together.
    """

    name: str = ""
    domain: str = ""


NO_TENANT = Tenant()


def tenant_of(headers: Mapping[str, str], user: str | None) -> Tenant:
    """Return the tenant: the header `X-Tenant`, else the body's `user`, else the API key's hash.

    The domain leaves `user` out. Each kind has names of its own, so that nobody gets into
    another's tenant by its `user`. Letters' case counts. Raises InvalidRequest for a header that
    is no name, an empty one, too.
    """
    named = headers.get(HEADER)
    if named is not None:
        if not _TENANT.fullmatch(named):
            raise InvalidRequest(
                "Invalid header 'X-Tenant': it must be 1 to 128 printable ASCII characters, "
                "without a space at either end.",
                param="X-Tenant",
            )
        return Tenant(f"tenant:{named}", f"tenant:{named}")
    key = next((headers[name] for name in _KEYS if headers.get(name)), None)
    domain = ""
    if key:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        domain = f"key:{digest[:_HASH_DIGITS]}"
    return Tenant(f"user:{user}" if user else domain, domain)


def of_tenant(
    request: Request, body: GenerationRequest, tenant: Tenant, sharing: PrefixSharing
) -> Request:
    """Return the request with what its place in the queue and its share of the cache hang on.

    With the sharing "tenant" a domain shares cached prefixes with no other, whatever salt its
    requests have, but for prompts that the operator has named; those with a salt of their own not
    even these.
    """
    salt = body.cache_salt or ""
    is_apart = bool(salt)
    if sharing == "tenant":
        # with its length nobody can write another's
        salt = f"{len(tenant.domain)}:{tenant.domain}{salt}"
    return dataclasses.replace(
        request,
        tenant=tenant.name,
        priority=body.priority or 0,
        cache_salt=salt,
        is_apart=is_apart,
        owner=tenant.domain,
    )
