"""Whose request it is."""

from __future__ import annotations

import hashlib

import pytest

from kserve_llamacpp.engine_client.generation import Request
from kserve_llamacpp.tenant import NO_TENANT, PrefixSharing, Tenant, of_tenant, tenant_of
from kserve_llamacpp.wire.frames import SamplingParams
from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import CompletionRequest


def _key(value: str) -> str:
    return f"key:{hashlib.sha256(value.encode()).hexdigest()[:32]}"


@pytest.mark.parametrize(
    ("headers", "user", "name", "domain"),
    [
        ({}, None, "", ""),
        ({}, "", "", ""),
        ({}, "u", "user:u", ""),
        ({"x-tenant": "a", "x-api-key": "k", "authorization": "b"}, "u", "tenant:a", "tenant:a"),
        ({"x-api-key": "k", "authorization": "b"}, "u", "user:u", _key("k")),
        ({"x-api-key": "k", "authorization": "b"}, None, _key("k"), _key("k")),
        ({"api-key": "k", "authorization": "b"}, None, _key("k"), _key("k")),
        ({"authorization": "Bearer b"}, None, _key("Bearer b"), _key("Bearer b")),
        ({"x-tenant": "A b"}, None, "tenant:A b", "tenant:A b"),
    ],
)
def test_the_header_wins_over_user_over_key(
    headers: dict[str, str], user: str | None, name: str, domain: str
) -> None:
    """The most deliberate name counts, each kind under names of its own; a key only as its hash.

    For the prefix cache `user` counts nothing: anybody can write it into a body.
    """
    assert tenant_of(headers, user) == Tenant(name, domain)


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "x" * 129, "a\tb", "Grüße", "a\x7f"])
def test_a_header_that_is_no_name_is_refused(name: str) -> None:
    """A tenant is a short printable name; what is not gets a 400 that names the header."""
    with pytest.raises(InvalidRequest) as caught:
        tenant_of({"x-tenant": name}, "user")

    assert (caught.value.status, caught.value.param) == (400, "X-Tenant")


def _request(
    tenant: Tenant = NO_TENANT, sharing: PrefixSharing = "tenant", **fields: object
) -> Request:
    body = CompletionRequest.model_validate({"prompt": "p", **fields})
    request = Request("req-1", "p", None, SamplingParams())
    return of_tenant(request, body, tenant, sharing)


def test_a_request_carries_its_tenant_priority_and_salt() -> None:
    """What the queue and the cache need is in the request; without a word from it, the defaults."""
    named = _request(Tenant("tenant:a", "tenant:a"), "all", priority=-3, cache_salt="s")
    silent = _request(sharing="all")

    assert (named.tenant, named.priority, named.cache_salt) == ("tenant:a", -3, "s")
    assert (silent.tenant, silent.priority, silent.cache_salt) == ("", 0, "")


def test_a_tenants_prefixes_cannot_be_reached_by_a_salt() -> None:
    """No salt of one domain is that of another; same salts of different domains differ, too."""
    salts = [
        _request(Tenant("", domain), cache_salt=salt).cache_salt
        for domain, salt in [("a", "bs"), ("ab", "s"), ("a", "s"), ("", "1:as"), ("a", None)]
    ]

    assert len(set(salts)) == len(salts)


def test_a_domain_has_one_salt_whatever_its_name_in_the_queue() -> None:
    """Requests of one key share prefixes, also where each names another user."""
    one, other = (_request(Tenant(f"user:{user}", "key:k")) for user in "ab")

    assert one.cache_salt == other.cache_salt


def test_all_share_where_the_operator_says_so() -> None:
    """With the sharing "all" a salt means the same for every tenant."""
    one, other = (_request(Tenant(d, d), "all", cache_salt="s") for d in "ab")

    assert one.cache_salt == other.cache_salt == "s"
