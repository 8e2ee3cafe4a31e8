"""Heads of requests are bounded, in bytes and in time."""

from __future__ import annotations

import asyncio
import json

from tests.proxy import harness
from tests.proxy.harness import Proxy, StandIn


async def talk(proxy: Proxy, *parts: bytes) -> bytes:
    """Send parts as far as they are taken; return all that comes until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_long_head_is_refused(proxy: Proxy) -> None:
    """A head over the bound gets 431 in the envelope; one below it is served."""
    start = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-long: "
    refused = await talk(proxy, start, b"a" * 70_000)
    head, _, body = refused.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert (await talk(proxy, start, b"a" * 60_000 + b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_head_that_does_not_end_is_dropped(upstream: StandIn) -> None:
    """A client that sends half a head, or nothing, does not hold its connection for ever."""
    async with harness.proxy(upstream_url=upstream.url, head_timeout_seconds=0.2) as proxy:
        assert await talk(proxy, b"GET /health/live HTTP/1.1\r\nhost:") == b""
        assert await talk(proxy) == b""


async def test_a_long_body_is_no_long_head(proxy: Proxy) -> None:
    """Bodies, and several requests on one connection, count for nothing."""
    body = json.dumps({"messages": [{"role": "user", "content": "a" * 200_000}]}).encode()
    post = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
        % len(body)
    )
    get = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    answers = await talk(proxy, post, body, post, body, get)
    assert answers.count(b"HTTP/1.1 200") == 3
