"""CORS: preflights, and what browsers are told of every other answer."""

from __future__ import annotations

from typing import Any

import pytest

from openai_proxy.config import ConfigError, load
from openai_proxy.cors import AllowOrigins
from openai_proxy.error_forms import FORMS
from openai_proxy.exchange import Exchange, attach
from openai_proxy.flags import parse
from openai_proxy.middleware import Message, Receive, Scope, Send
from tests.proxy import harness
from tests.proxy.harness import CHAT, DONE, MESSAGES, Proxy, StandIn, chunk, streamed

PAGE = "https://app.example.com"
URL = {"upstream_url": "http://127.0.0.1:8080"}


async def preflight(
    proxy: Proxy, origin: str = PAGE, path: str = CHAT, **headers: str
) -> tuple[int, Any]:
    """Ask as a browser does before a page may post JSON; returns status and headers."""
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        **headers,
    }
    async with proxy.http.options(proxy.url + path, headers=asked) as response:
        return response.status, response.headers


async def post(proxy: Proxy, origin: str | None = PAGE, **fields: Any) -> tuple[int, Any, bytes]:
    headers = {} if origin is None else {"origin": origin}
    body = {"model": "tiny", "messages": MESSAGES, **fields}
    async with proxy.http.post(proxy.url + CHAT, json=body, headers=headers) as response:
        return response.status, response.headers, await response.read()


async def test_off_by_default(proxy: Proxy) -> None:
    """Without the setting nothing is said of CORS, and a preflight is a method like others."""
    status, headers = await preflight(proxy)
    assert status == 405
    assert not [name for name in headers if name.lower().startswith("access-control")]
    _, headers, _ = await post(proxy)
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "vary" not in headers


async def test_preflight(upstream: StandIn) -> None:
    """A preflight is answered by the proxy alone: origin, methods, the headers asked for, age."""
    async with harness.proxy(
        upstream_url=upstream.url, cors_allow_origins=PAGE, cors_max_age_seconds=7
    ) as proxy:
        status, headers = await preflight(proxy)
    assert status == 204
    assert headers["access-control-allow-origin"] == PAGE
    assert "POST" in headers["access-control-allow-methods"]
    asked = "authorization,content-type,x-stainless-lang"
    assert headers["access-control-allow-headers"] == asked
    assert headers["access-control-max-age"] == "7"
    assert "origin" in headers["vary"]
    assert "x-request-id" in headers
    assert "access-control-allow-credentials" not in headers
    assert not upstream.requests


async def test_preflight_of_any_path(upstream: StandIn) -> None:
    """Paths that do not exist, and health, are preflighted alike: the paths decide later."""
    async with harness.proxy(upstream_url=upstream.url, cors_allow_origins=PAGE) as proxy:
        for path in ("/nowhere", "/health", "/v1/models"):
            status, headers = await preflight(proxy, path=path)
            assert (status, headers["access-control-allow-origin"]) == (204, PAGE)


async def test_preflight_of_another_origin(upstream: StandIn) -> None:
    """Pages of an origin that is not listed are refused, in the envelope."""
    async with harness.proxy(upstream_url=upstream.url, cors_allow_origins=PAGE) as proxy:
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        async with proxy.http.options(proxy.url + CHAT, headers=asked) as response:
            assert response.status == 403
            assert (await response.json())["error"]["code"] == "origin_not_allowed"
            assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("errors", "error"),
    [
        ("openai", {"type": "invalid_request_error", "code": "origin_not_allowed"}),
        ("seed", {"type": "invalid_request_error", "code": "ORIGIN_NOT_ALLOWED"}),
        ("flat", None),
    ],
)
async def test_a_refused_preflight_has_the_chosen_form(
    upstream: StandIn, errors: str, error: dict[str, str] | None
) -> None:
    """What refuses a preflight is told in the form that the setting names, as all errors are."""
    settings = {"cors_allow_origins": PAGE, "errors": errors}
    async with harness.proxy(upstream_url=upstream.url, **settings) as proxy:
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        async with proxy.http.options(proxy.url + CHAT, headers=asked) as response:
            assert response.status == 403
            body = await response.json()
    if error is None:
        assert body["code"] == "ORIGIN_NOT_ALLOWED"
        assert isinstance(body["error"], str)
    else:
        assert {name: body["error"][name] for name in error} == error


async def test_requested_headers_are_names(upstream: StandIn) -> None:
    """What is no list of names is not written into the answer."""
    async with harness.proxy(upstream_url=upstream.url, cors_allow_origins=PAGE) as proxy:
        bad = {"access-control-request-headers": 'x-a, "b" <script>'}
        status, headers = await preflight(proxy, **bad)
        assert status == 204
        assert "access-control-allow-headers" not in headers
        bad = {"access-control-request-headers": ",".join(["x-long"] * 1000)}
        _, headers = await preflight(proxy, **bad)
        assert "access-control-allow-headers" not in headers


async def test_options_without_a_preflight(upstream: StandIn) -> None:
    """OPTIONS without the headers of a preflight is a request like others."""
    async with (
        harness.proxy(upstream_url=upstream.url, cors_allow_origins=PAGE) as proxy,
        proxy.http.options(proxy.url + CHAT, headers={"origin": PAGE}) as response,
    ):
        assert response.status == 405
        assert response.headers["access-control-allow-origin"] == PAGE


async def test_answers_name_the_origin(upstream: StandIn) -> None:
    """A page may read answer, request id and Retry-After; caches keep answers apart by origin."""
    async with harness.proxy(upstream_url=upstream.url, cors_allow_origins=PAGE) as proxy:
        status, headers, _ = await post(proxy)
        assert status == 200
        assert headers["access-control-allow-origin"] == PAGE
        exposed = headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after"} <= set(exposed)
        assert headers["vary"] == "origin"
        status, headers, _ = await post(proxy, origin=None)
        assert (status, headers["vary"]) == (200, "origin")
        assert "access-control-allow-origin" not in headers


async def test_another_origin_is_served_but_may_not_read(upstream: StandIn) -> None:
    """A request of another origin is no preflight: it is served, and its page gets nothing."""
    async with harness.proxy(upstream_url=upstream.url, cors_allow_origins=PAGE) as proxy:
        status, headers, _ = await post(proxy, origin="https://evil.example")
    assert status == 200
    assert "access-control-allow-origin" not in headers
    assert "access-control-expose-headers" not in headers


@pytest.mark.parametrize(
    ("fields", "path", "expected"),
    [({"messages": []}, CHAT, 400), ({}, "/v1/nowhere", 404), ({}, "/health", 405)],
)
async def test_errors_can_be_read(
    upstream: StandIn, fields: dict[str, Any], path: str, expected: int
) -> None:
    """Answers that refuse carry the headers, too: a page sees why, not a network error."""
    async with harness.proxy(upstream_url=upstream.url, cors_allow_origins=PAGE) as proxy:
        body = {"model": "tiny", "messages": MESSAGES, **fields}
        async with proxy.http.post(
            proxy.url + path, json=body, headers={"origin": PAGE}
        ) as response:
            assert response.status == expected
            assert response.headers["access-control-allow-origin"] == PAGE


async def test_streams(upstream: StandIn) -> None:
    """A stream's head has the headers, and its events come through as they are."""
    upstream.respond = streamed(chunk("a"), chunk("b"), DONE)
    async with harness.proxy(upstream_url=upstream.url, cors_allow_origins="*") as proxy:
        status, headers, body = await post(proxy, stream=True)
    assert status == 200
    assert headers["access-control-allow-origin"] == "*"
    assert "vary" not in headers
    assert body == chunk("a") + chunk("b") + DONE


async def test_credentials(upstream: StandIn) -> None:
    """Where they are allowed, browsers are told so, for listed origins alone."""
    async with harness.proxy(
        upstream_url=upstream.url, cors_allow_origins=PAGE, cors_allow_credentials=True
    ) as proxy:
        _, headers = await preflight(proxy)
        assert headers["access-control-allow-credentials"] == "true"
        _, headers, _ = await post(proxy)
        assert headers["access-control-allow-credentials"] == "true"
        _, headers, _ = await post(proxy, origin="https://evil.example")
        assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    ("setting", "origin", "is_allowed"),
    [
        ("https://a.example", "https://a.example", True),
        ("HTTPS://A.example", "https://a.example", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example:8443", False),
        ("https://a.example", "https://axexample", False),
        ("https://a.example", "https://a.example.evil.test", False),
        ("https://*.a.example", "https://b.a.example", True),
        ("https://*.a.example", "https://c.b.a.example", True),
        ("https://*.a.example", "https://a.example", False),
        ("https://*.a.example", "https://evila.example", False),
        ("https://*.a.example", "https://b.a.example.evil.test", False),
        ("https://*.a.example", "https://evil.test/.a.example", False),
        ("http://localhost:*", "http://localhost:5173", True),
        ("http://localhost:*", "http://localhost", False),
        ("http://localhost:*", "http://localhost.evil.test:80", False),
        ("http://[::1]:3000", "http://[::1]:3000", True),
        ("vscode-webview://*", "vscode-webview://1a2b-3c", True),
        ("null", "null", True),
        ("https://a.example, https://b.example", "https://b.example", True),
        ('["https://a.example", "https://b.example"]', "https://b.example", True),
        ("*", "https://anything.test", True),
    ],
)
async def test_origins(setting: str, origin: str, is_allowed: bool) -> None:
    """An origin is allowed when it is listed, or fits a pattern as a whole."""
    cors = load({**URL, "cors_allow_origins": setting}).cors
    assert cors is not None
    app = AllowOrigins(unreachable, cors, FORMS["openai"])
    assert await status_of_preflight(app, origin) == (204 if is_allowed else 403)


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("a preflight goes no further")


async def status_of_preflight(app: AllowOrigins, origin: str) -> int:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("a preflight has no body to read")

    headers = [(b"origin", origin.encode()), (b"access-control-request-method", b"POST")]
    scope: Scope = {"type": "http", "method": "OPTIONS", "path": CHAT, "headers": headers}
    attach(scope, Exchange("req_1", "OPTIONS", CHAT, started_at=0))
    await app(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cors-allow-origins", "https://a.example/"], "--cors-allow-origins"),
        (["--cors-allow-origins", "a.example"], "--cors-allow-origins"),
        (["--cors-allow-origins", "https://a*.example"], "--cors-allow-origins"),
        (["--cors-allow-origins", "https://a.example.*"], "--cors-allow-origins"),
        (["--cors-allow-origins", "["], "--cors-allow-origins"),
        (["--cors-expose-headers", "x y"], "--cors-expose-headers"),
        (["--cors-allow-credentials"], "--cors-allow-origins"),
        (["--cors-allow-origins", "*", "--cors-allow-credentials"], "--cors-allow-credentials"),
        (["--cors-allow-origins", "null", "--cors-allow-credentials"], "--cors-allow-credentials"),
        (
            ["--cors-allow-origins", "https://*:*", "--cors-allow-credentials"],
            "--cors-allow-credentials",
        ),
    ],
)
def test_bad_settings(flags: list[str], says: str) -> None:
    """A bad origin, or credentials for anyone, stop the start with a line that names it."""
    with pytest.raises(ConfigError) as raised:
        load({**URL, **parse(flags)})
    assert says in str(raised.value)


def test_subdomains_may_have_credentials() -> None:
    """A pattern of one's own subdomains is no stranger's."""
    flags = {"cors_allow_origins": "https://*.example.com", "cors_allow_credentials": True}
    cors = load({**URL, **flags}).cors
    assert cors is not None
    assert cors.allow_credentials
