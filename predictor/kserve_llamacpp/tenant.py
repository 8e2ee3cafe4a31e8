"""Whose request it is: the queue is fair among tenants, and the cache may keep them apart."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping

from kserve_llamacpp.engine.generation import Request
from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import GenerationRequest

HEADER = "x-tenant"
_TENANT = re.compile(r"[ -~]{1,128}")
_HASH_DIGITS = 16


def tenant_of(headers: Mapping[str, str], user: str | None) -> str:
    """Return the tenant: the header `X-Tenant`, else the body's `user`, else the API key's hash.

    Each kind has names of its own, so that nobody gets into another's tenant by its `user`. Empty
    where a request says nothing. Raises InvalidRequest for a header that is no name.
    """
    named = headers.get(HEADER)
    if named is not None:
        if not _TENANT.fullmatch(named):
            raise InvalidRequest(
                "Invalid header 'X-Tenant': it must be 1 to 128 printable ASCII characters.",
                param="X-Tenant",
            )
        return f"tenant:{named}"
    if user:
        return f"user:{user}"
    key = headers.get("x-api-key") or headers.get("authorization")
    if key:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return f"key:{digest[:_HASH_DIGITS]}"
    return ""


def of_tenant(
    request: Request, body: GenerationRequest, tenant: str, is_cache_apart: bool
) -> Request:
    """Return the request with what its place in the queue and its share of the cache hang on.

    With `is_cache_apart` a tenant shares cached prefixes with no other, whatever salt it sends.
    """
    salt = body.cache_salt or ""
    if is_cache_apart:
        salt = f"{len(tenant)}:{tenant}{salt}"  # with its length nobody can write another's
    return dataclasses.replace(request, tenant=tenant, priority=body.priority or 0, cache_salt=salt)
