"""Whose request it is."""

from __future__ import annotations

import hashlib

import pytest

from kserve_llamacpp.engine.frames import SamplingParams
from kserve_llamacpp.engine.generation import Request
from kserve_llamacpp.tenant import of_tenant, tenant_of
from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import CompletionRequest


@pytest.mark.parametrize(
    ("headers", "user", "tenant"),
    [
        ({}, None, ""),
        ({}, "", ""),
        ({"x-tenant": "a", "x-api-key": "k", "authorization": "b"}, "u", "tenant:a"),
        ({"x-api-key": "k", "authorization": "b"}, "u", "user:u"),
        ({"x-api-key": "k", "authorization": "b"}, None, "key:k"),
        ({"authorization": "Bearer b"}, None, "key:Bearer b"),
    ],
)
def test_the_header_wins_over_user_over_key(
    headers: dict[str, str], user: str | None, tenant: str
) -> None:
    """The most deliberate name counts, each kind under names of its own; a key only as its hash."""
    kind, _, name = tenant.partition(":")
    if kind == "key":
        tenant = f"key:{hashlib.sha256(name.encode()).hexdigest()[:16]}"

    assert tenant_of(headers, user) == tenant


@pytest.mark.parametrize("name", ["", "x" * 129, "a\tb", "Grüße", "a\x7f"])
def test_a_header_that_is_no_name_is_refused(name: str) -> None:
    """A tenant is a short printable name; what is not gets a 400 that names the header."""
    with pytest.raises(InvalidRequest) as caught:
        tenant_of({"x-tenant": name}, "user")

    assert (caught.value.status, caught.value.param) == (400, "X-Tenant")


def _request(tenant: str = "", is_cache_apart: bool = False, **fields: object) -> Request:
    body = CompletionRequest.model_validate({"prompt": "p", **fields})
    request = Request("req-1", "p", None, SamplingParams())
    return of_tenant(request, body, tenant, is_cache_apart)


def test_a_request_carries_its_tenant_priority_and_salt() -> None:
    """What the queue and the cache need is in the request; without a word from it, the defaults."""
    named = _request("tenant:a", priority=-3, cache_salt="s")
    silent = _request()

    assert (named.tenant, named.priority, named.cache_salt) == ("tenant:a", -3, "s")
    assert (silent.tenant, silent.priority, silent.cache_salt) == ("", 0, "")


def test_a_cache_for_each_tenant_cannot_be_entered_by_a_salt() -> None:
    """Where tenants' caches are apart, no salt of one is that of another; same salts still differ.

    Without that setting a salt means the same for all.
    """
    salts = [
        _request(tenant, True, cache_salt=salt).cache_salt
        for tenant, salt in [("a", "bs"), ("ab", "s"), ("a", "s"), ("", "1:as")]
    ]

    assert len(set(salts)) == len(salts)
    assert _request("a", True).cache_salt != _request("b", True).cache_salt
    assert _request("a", cache_salt="s").cache_salt == _request("b", cache_salt="s").cache_salt
