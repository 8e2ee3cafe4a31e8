"""What the proxy makes of a request's head before anything else looks at it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from openai_proxy.config import ConfigError, load
from tests.proxy import harness
from tests.proxy.certificates import Authority
from tests.proxy.harness import CHAT, MESSAGES, Proxy, StandIn
from tests.proxy.log_lines import logged

URL = {"upstream_url": "http://127.0.0.1:8080"}
BODY = json.dumps({"model": "tiny", "messages": MESSAGES}).encode()


async def ask(port: int, head: str, body: bytes = b"") -> tuple[int, dict[str, str], Any]:
    """Send a request as it is written; returns status, headers and decoded body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
    top, _, rest = answer.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(rest) if rest else None


async def get(port: int, path: str, *headers: str, host: str = "localhost") -> tuple[int, Any]:
    """Get a path as it is written."""
    lines = (f"GET {path} HTTP/1.1", f"host: {host}", "connection: close", *headers)
    status, _, body = await ask(port, "\n".join(lines))
    return status, body


async def post(port: int, *headers: str) -> tuple[int, Any]:
    """Post a chat with these headers besides."""
    length = f"content-length: {len(BODY)}"
    lines = (f"POST {CHAT} HTTP/1.1", "host: localhost", "connection: close", length, *headers)
    status, _, body = await ask(port, "\n".join(lines), BODY)
    return status, body


@pytest.mark.parametrize(
    "name",
    [
        *("X-Tenant", "Authorization", "X-Api-Key", "Api-Key", "Content-Type", "X-Request-Id"),
        *("X-Resumable", "Traceparent", "Origin"),
    ],
)
async def test_headers_given_twice(proxy: Proxy, upstream: StandIn, name: str) -> None:
    """Of two values nobody knows which one counts: the request is refused, and not sent."""
    status, body = await post(proxy.port, f"{name}: a", f"{name.lower()}: b")
    assert (status, body["error"]["param"]) == (400, name)
    assert upstream.requests == []


async def test_hosts_of_others(proxy: Proxy) -> None:
    """On loopback a page's own name is refused for every path, this machine's names are served."""
    for path in ("/health", "/v1/models", "/metrics", "/v1/unknown"):
        status, body = await get(proxy.port, path, host="rebound.example")
        assert (status, body["error"]["code"]) == (403, "host_not_allowed")
    for host in ("127.0.0.1:1", "[::1]:8000", "LOCALHOST"):
        assert (await get(proxy.port, "/v1/models", host=host))[0] == 200


async def test_allowed_hosts(upstream: StandIn) -> None:
    """Hosts can be allowed by name, and all of them."""
    async with harness.proxy(upstream_url=upstream.url, allowed_hosts="a.example,b.example") as it:
        assert (await get(it.port, "/v1/models", host="b.example:80"))[0] == 200
        assert (await get(it.port, "/v1/models", host="c.example"))[0] == 403
    async with harness.proxy(upstream_url=upstream.url, allowed_hosts="*") as it:
        assert (await get(it.port, "/v1/models", host="c.example"))[0] == 200


async def test_a_preflight_of_a_foreign_host(upstream: StandIn) -> None:
    """The host is looked at before CORS is."""
    async with harness.proxy(upstream_url=upstream.url, cors_allow_origins="*") as it:
        head = "OPTIONS /v1/models HTTP/1.1\nhost: a.example\nconnection: close\norigin: http://a"
        status, _, body = await ask(it.port, f"{head}\naccess-control-request-method: POST")
    assert (status, body["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /v1/models HTTP/1.1\nconnection: close", 400),
        ("GET /v1/models HTTP/1.1\nhost: localhost\nhost: localhost\nconnection: close", 400),
        ("GET /v1/models HTTP/1.0", 200),
        ("GET /v1/models", 505),
        (f"POST {CHAT} HTTP/1.1\nhost: localhost\ntransfer-encoding: gzip, chunked", 501),
        (f"POST {CHAT} HTTP/1.1\nhost: localhost\ntransfer-encoding: gzip", 501),
        ("GET http://localhost/v1/models HTTP/1.1\nhost: localhost\nconnection: close", 200),
        ("GET http://a.example/v1/models HTTP/1.1\nhost: localhost\nconnection: close", 400),
        ("GET http://a.example/v1/models HTTP/1.1\nhost: a.example\nconnection: close", 403),
        ("GET http://a.example/v1/models HTTP/1.0", 403),
        (
            f"POST {CHAT} HTTP/1.1\nhost: localhost\ntransfer-encoding: chunked\ncontent-length: 3",
            400,
        ),
        (f"POST {CHAT} HTTP/1.0\nhost: localhost\ntransfer-encoding: chunked", 400),
    ],
)
async def test_unclear_heads(proxy: Proxy, head: str, status: int) -> None:
    """A head without one host, or without one end of its body, is refused; the connection ends."""
    answered, headers, body = await ask(proxy.port, head)
    assert answered == status
    if status != 200:
        assert set(body["error"]) == {"message", "type", "param", "code"}
    if "POST" in head:
        assert headers["connection"] == "close"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/models/tiny", 200, None),
        ("/v1/models/t%69ny", 200, None),
        ("/v1/models/org%2Fname", 200, None),
        ("/v1/models/org%2fname", 200, None),
        ("/v1/models/org/name", 200, None),
        ("/v1/models/org%252Fname", 404, "model_not_found"),
        ("/v1%2Fmodels", 404, "unknown_url"),
        ("/v1%2fchat%2fcompletions", 404, "unknown_url"),
        ("/health%2Flive", 404, "unknown_url"),
        ("/health/live/../../v1/models", 404, "unknown_url"),
        ("/health/live/%2e%2e/%2E%2E/metrics", 404, "unknown_url"),
        ("//v1/models", 404, "unknown_url"),
        ("/v1//models", 404, "unknown_url"),
        ("/v1/./models", 404, "unknown_url"),
        ("/v1/models/../../metrics", 404, "unknown_url"),
    ],
)
async def test_paths(upstream: StandIn, path: str, status: int, code: str | None) -> None:
    """An encoded slash is part of a model's name, and no path is another one in disguise."""
    names = [{"id": name, "object": "model"} for name in ("tiny", "org/name")]
    upstream.models = harness.answered_json({"object": "list", "data": names})
    async with harness.proxy(upstream_url=upstream.url) as it:
        answered, body = await get(it.port, path)
    assert answered == status, body
    assert code is None or body["error"]["code"] == code


async def test_open_to_all(upstream: StandIn, tmp_path: Path) -> None:
    """Where others reach it and need no certificate, the start says so in one line, else not."""
    authority = Authority()
    cert_file, key_file = authority.issue("localhost").write(tmp_path)
    ca_file = authority.write(tmp_path)
    tls = {"tls_cert_file": cert_file, "tls_key_file": key_file}
    anywhere = {"upstream_url": upstream.url, "host": "0.0.0.0"}  # noqa: S104
    cases: list[tuple[dict[str, Any], int]] = [
        ({"upstream_url": upstream.url}, 0),
        (anywhere, 1),
        (anywhere | tls, 1),
        (anywhere | tls | {"tls_client_ca_file": ca_file}, 0),
    ]
    for settings, num_lines in cases:
        with logged(log_level="warning") as lines:
            async with harness.proxy(**settings):
                found = lines.events("open_to_all")
        assert len(found) == num_lines, settings
        for line in found:
            assert line["level"] == "warning"
            assert "--host" in line["reason"]
            assert "--tls-client-ca-file" in line["reason"]


@pytest.mark.parametrize("hosts", ["http://a.example", "a.example:80", ["a b"]])
def test_bad_hosts(hosts: Any) -> None:
    """What is no host stops the start, by the setting's name."""
    with pytest.raises(ConfigError, match=r"allowed.hosts.*write app\.example\.com"):
        load({**URL, "allowed_hosts": hosts})
