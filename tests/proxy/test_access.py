"""What an upstream sees of its own proxy: credentials, and headers by rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from openai_proxy.config import ConfigError, load
from openai_proxy.routing.access import Access
from tests.proxy import harness
from tests.proxy.harness import CHAT, COMPLETION, MESSAGES, StandIn, answered


def headers_of(standin: StandIn) -> dict[str, str]:
    return {name.lower(): value for name, value in standin.requests[-1].headers.items()}


async def test_credentials_and_rules(upstream: StandIn) -> None:
    """The upstream gets the proxy's key, what rules set, and nothing that they drop."""
    settings = {
        "upstream_credentials": {"authorization": "sesame", "resource_group": "blue"},
        "upstream_headers": {"pass": ["x-*"], "drop": ["x-inner-*"], "set": {"x-team": "red"}},
    }
    async with harness.proxy(upstream_url=upstream.url, **settings) as proxy:
        headers = {"authorization": "Bearer mine", "x-inner-a": "1", "x-outer": "2"}
        body = {"model": "tiny", "messages": MESSAGES}
        async with proxy.http.post(proxy.url + CHAT, json=body, headers=headers) as response:
            assert response.status == 200
    seen = headers_of(upstream)
    assert seen["authorization"] == "Bearer sesame"
    assert (seen["ai-resource-group"], seen["x-team"], seen["x-outer"]) == ("blue", "red", "2")
    assert "x-inner-a" not in seen


CREDENTIALS = {
    "Authorization": "k",
    "X-Api-Key": "k",
    "Api-Key": "k",
    "X-Goog-Api-Key": "k",
    "Ocp-Apim-Subscription-Key": "k",
    "X-Auth-Token": "k",
    "Cookie": "k=k",
    "X-New": "k",
}
LISTED = {
    "baggage": "a=b",
    "x-tenant": "blue",
    "user-agent": "u",
    "accept-language": "de",
    "openai-project": "p",
    "x-stainless-os": "l",
}


@pytest.mark.parametrize("dialect", ["openai", "kserve-v1", "shimmy"])
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_keys_by_other_names(upstream: StandIn, dialect: str, path: str) -> None:
    """By default an upstream gets listed headers of a client, and no key by any name."""
    body: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "input": "x"}
    del body["input" if path == CHAT else "messages"]
    settings = {"upstream_url": upstream.url, "upstream_dialect": dialect}
    async with harness.proxy(**settings) as proxy:
        headers = CREDENTIALS | LISTED
        async with proxy.http.post(proxy.url + path, json=body, headers=headers) as response:
            await response.read()
    if dialect != "openai" and path != CHAT:
        assert upstream.requests == []  # no such endpoint there
        return
    seen = headers_of(upstream)
    assert {name: seen.get(name) for name in LISTED} == LISTED
    own = {"host", "accept-encoding", "x-request-id", "content-type", "content-length", "accept"}
    assert seen.keys() - LISTED.keys() <= own


def test_a_backend_of_the_proxys_own() -> None:
    """What no rules were given for gets listed headers alone, too."""
    headers = [("x-auth-token", "k"), ("x-tenant", "blue"), ("host", "there")]
    assert Access().passed(headers, []) == headers[1:]


async def test_no_agent_is_made_up(upstream: StandIn) -> None:
    """The upstream gets the client's user-agent, and none where there is none."""
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        body = {"model": "tiny", "messages": MESSAGES}
        for headers, skipped in ((None, ["user-agent"]), ({"user-agent": "mine/1"}, [])):
            async with proxy.http.post(
                proxy.url + CHAT, json=body, headers=headers, skip_auto_headers=skipped
            ) as response:
                assert response.status == 200
    without, with_one = upstream.requests
    assert without.headers.getall("user-agent", []) == []
    assert with_one.headers.getall("user-agent") == ["mine/1"]


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("rules", "seen"),
    [
        ({}, {"traceparent": [TRACE], "x-request-id": ["r1"]}),
        ({"drop": ["traceparent", "x-request-id"]}, {"traceparent": [], "x-request-id": []}),
        (
            {"set": {"traceparent": "fixed", "x-request-id": "ours", "host": "there"}},
            {"traceparent": ["fixed"], "x-request-id": ["ours"], "host": ["there"]},
        ),
    ],
)
async def test_rules_hold_for_what_the_proxy_adds(
    upstream: StandIn, rules: dict[str, Any], seen: dict[str, list[str]]
) -> None:
    """Headers of the trace, the request's id and the host are dropped and set as any other."""
    async with harness.proxy(upstream_url=upstream.url, upstream_headers=rules) as proxy:
        headers = {"traceparent": TRACE, "x-request-id": "r1"}
        body = {"model": "tiny", "messages": MESSAGES}
        async with proxy.http.post(proxy.url + CHAT, json=body, headers=headers) as response:
            assert response.status == 200
    (asked,) = upstream.requests
    assert {name: asked.headers.getall(name, []) for name in seen} == seen


@pytest.mark.parametrize(
    "settings",
    [
        {"upstream_credentials": {"authorization": "sesame"}},
        {"upstream_headers": {"set": {"api-key": "sesame"}}},
    ],
)
async def test_refused_credentials_are_not_the_clients(
    upstream: StandIn, settings: dict[str, Any]
) -> None:
    """When the upstream refuses the proxy's own key, the client is told of a failure, no 401."""
    upstream.respond = answered(401, '{"error": {"message": "bad key sesame"}}', "application/json")
    async with harness.proxy(upstream_url=upstream.url, **settings) as proxy:
        status, body = await proxy.chat()
    assert (status, body["error"]["code"]) == (502, "upstream_error")
    assert "sesame" not in str(body)


async def test_a_key_that_was_replaced_is_read_again(upstream: StandIn, tmp_path: Path) -> None:
    """After a 401 the key's file is read again, and the request is sent once more."""
    key = tmp_path / "key"
    key.write_text("old")

    async def respond(request: web.Request) -> web.StreamResponse:
        if request.headers["authorization"] == "Bearer new":
            return web.json_response(COMPLETION)
        key.write_text("new")
        return web.json_response({"error": {"message": "no"}}, status=401)

    upstream.respond = respond
    settings = {"upstream_credentials": {"authorization_file": str(key)}}
    async with harness.proxy(upstream_url=upstream.url, **settings) as proxy:
        assert (await proxy.chat())[0] == 200
    assert len(upstream.requests) == 2


def test_no_secret_is_shown() -> None:
    """A wrong value beside a secret is told without it, and settings do not print it."""
    given = {"authorization": "sesame", "oauth2": {}}
    with pytest.raises(ConfigError) as caught:
        load({"upstream_url": "http://h", "upstream_credentials": given})
    assert "sesame" not in str(caught.value.problems)
    settings = load(
        {"upstream_url": "http://h", "upstream_credentials": {"authorization": "sesame"}}
    )
    assert "sesame" not in repr(settings)
