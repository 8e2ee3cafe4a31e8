"""Deadlines and clients that leave: the request ends, and the upstream learns of it at once."""

from __future__ import annotations

import asyncio
import gc
import json
import time

import pytest
from aiohttp import web

from http_edge.connection import BoundedConnection
from openai_protocol.requests import ChatCompletionRequest
from tests.proxy import harness
from tests.proxy.harness import CHAT, MESSAGES, Proxy, StandIn, chunk, start_stream, until
from tests.proxy.test_errors import error_of, last_event


async def silent(_: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.sleep(3600)
    return web.Response()


async def stuck(request: web.Request) -> web.StreamResponse:
    """Begin a stream and fall silent."""
    response = await start_stream(request)
    await response.write(chunk("a"))
    await asyncio.sleep(3600)
    return response


async def endless(request: web.Request) -> web.StreamResponse:
    """Stream on and on."""
    response = await start_stream(request)
    while True:
        await response.write(chunk("x" * 100))
        await asyncio.sleep(0.01)


def posted(messages: list[dict[str, str]], stream: bool = False) -> tuple[bytes, bytes]:
    """A chat's head and body, as they go over a socket."""
    body = json.dumps({"messages": messages, "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode(), body


async def leave(proxy: Proxy, stream: bool, read_first: bool) -> None:
    """Send a request on a socket of its own, and hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"".join(posted(MESSAGES, stream)))
    await writer.drain()
    if read_first:
        await reader.readuntil(b"\n\n")
    else:
        await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("respond", "stream", "read_first"),
    [(silent, False, False), (silent, True, False), (stuck, True, True), (endless, True, True)],
    ids=["whole", "before the first event", "silent in mid-stream", "in mid-stream"],
)
async def test_disconnect_closes_the_upstream(
    proxy: Proxy, upstream: StandIn, respond: harness.Respond, stream: bool, read_first: bool
) -> None:
    """When its client leaves, the upstream's connection is closed within a second."""
    upstream.respond = respond
    await leave(proxy, stream, read_first)
    left_at = time.monotonic()
    await asyncio.wait_for(upstream.closed.wait(), 1)
    assert time.monotonic() - left_at < 1
    await until(lambda: len(proxy.lifecycle._running) == 0, 1)


@pytest.mark.parametrize("in_one", [True, False])
async def test_disconnect_after_a_large_body(proxy: Proxy, upstream: StandIn, in_one: bool) -> None:
    """It is noticed, too, where the server has paused to read a body of more than 64 KiB."""
    upstream.respond = silent
    head, body = posted([{"role": "user", "content": "x" * 200_000}])
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    for part in [head + body] if in_one else [head, body]:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.05)
    await until(lambda: len(upstream.requests) == 1, 5)
    writer.close()
    await writer.wait_closed()
    await asyncio.wait_for(upstream.closed.wait(), 1)
    await until(lambda: len(proxy.lifecycle._running) == 0, 1)


async def test_the_second_request_of_a_connection_is_watched(
    proxy: Proxy, upstream: StandIn
) -> None:
    """A client that sent two requests at once, and leaves during the second, is gone."""
    answer = upstream.respond

    async def first_only(request: web.Request) -> web.StreamResponse:
        return await (answer if len(upstream.requests) == 1 else silent)(request)

    upstream.respond = first_only
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"".join(posted(MESSAGES)) * 2)
    assert b"200" in await reader.readline()
    await until(lambda: len(upstream.requests) == 2, 5)
    upstream.closed.clear()
    writer.close()
    await asyncio.wait_for(upstream.closed.wait(), 1)
    await until(lambda: len(proxy.lifecycle._running) == 0, 1)


async def test_nothing_waits_for_the_garbage_collector(proxy: Proxy, upstream: StandIn) -> None:
    """Connections, requests and their bodies are gone when they are over, well or not."""

    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    def there() -> list[object]:
        kinds = (BoundedConnection, ChatCompletionRequest)
        return [one for one in gc.get_objects() if isinstance(one, kinds)]

    answer = upstream.respond
    gc.collect()
    gc.disable()
    others = {id(one) for one in there()}  # other tests may hold some for good
    try:
        for respond in (answer, refuse, silent, answer):
            upstream.respond = respond
            if respond is silent:
                await leave(proxy, stream=True, read_first=False)
            else:
                body = {"messages": MESSAGES}
                async with proxy.http.post(
                    proxy.url + CHAT, json=body, headers={"connection": "close"}
                ) as response:
                    await response.read()
        await until(lambda: len(proxy.lifecycle._running) == 0, 1)
        await until(lambda: {id(one) for one in there()} <= others, 5)
    finally:
        gc.enable()


async def test_disconnect_while_uploading(proxy: Proxy, upstream: StandIn) -> None:
    """A client that leaves in the middle of its body costs nothing further."""
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{".encode()
    )
    await writer.drain()
    await until(lambda: len(proxy.lifecycle._running) == 1, 1)
    writer.close()
    await writer.wait_closed()
    await until(lambda: len(proxy.lifecycle._running) == 0, 1)
    assert upstream.requests == []


async def test_deadline_before_the_first_byte(upstream: StandIn) -> None:
    """A request past its deadline gets 504, and its upstream connection is closed."""
    upstream.respond = silent
    async with harness.proxy(upstream_url=upstream.url, request_timeout_seconds=0.3) as proxy:
        for stream in (False, True):
            upstream.closed.clear()
            status, body = await proxy.chat(stream=stream)
            assert (status, error_of(body)["code"]) == (504, "request_timeout")
            await asyncio.wait_for(upstream.closed.wait(), 1)


@pytest.mark.parametrize("respond", [stuck, endless])
async def test_deadline_in_mid_stream(upstream: StandIn, respond: harness.Respond) -> None:
    """A stream past its deadline ends with an error event."""
    upstream.respond = respond
    async with harness.proxy(upstream_url=upstream.url, request_timeout_seconds=0.3) as proxy:
        stream = await asyncio.wait_for(proxy.stream(), 3)
        assert stream.startswith("data: {")
        assert error_of(last_event(stream))["code"] == "request_timeout"
        await asyncio.wait_for(upstream.closed.wait(), 1)


async def test_deadline_while_uploading(upstream: StandIn) -> None:
    """A body that does not come within the deadline is answered with 504."""
    async with harness.proxy(upstream_url=upstream.url, request_timeout_seconds=0.3) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n".encode()
        )
        line = await asyncio.wait_for(reader.readline(), 3)
        assert b"504" in line
        writer.close()
        await writer.wait_closed()


async def test_silence_before_the_first_byte(upstream: StandIn) -> None:
    """An upstream silent for longer than the read timeout gives 504."""
    upstream.respond = silent
    async with harness.proxy(upstream_url=upstream.url, read_timeout_seconds=0.2) as proxy:
        status, body = await proxy.chat()
        assert (status, error_of(body)["code"]) == (504, "request_timeout")


async def test_silence_before_the_first_event(upstream: StandIn) -> None:
    """A stream whose head comes and nothing else gives 504, and is asked for once."""
    num_asked = 0

    async def begun(request: web.Request) -> web.StreamResponse:
        nonlocal num_asked
        num_asked += 1
        await start_stream(request)
        await asyncio.Event().wait()
        raise AssertionError

    upstream.respond = begun
    async with harness.proxy(upstream_url=upstream.url, read_timeout_seconds=0.2) as proxy:
        status, body = await proxy.chat(stream=True)
        assert (status, error_of(body)["code"]) == (504, "request_timeout")
        assert num_asked == 1


async def test_silence_in_mid_stream(upstream: StandIn) -> None:
    """A stream silent for longer than the read timeout ends with an error event."""
    upstream.respond = stuck
    async with harness.proxy(upstream_url=upstream.url, read_timeout_seconds=0.2) as proxy:
        stream = await asyncio.wait_for(proxy.stream(), 3)
        assert error_of(last_event(stream))["code"] == "upstream_stream_broken"


async def test_a_client_that_does_not_read_is_given_up(upstream: StandIn) -> None:
    """A client that stops reading its stream ends at the deadline; the upstream is closed."""

    async def flood(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        while True:
            await response.write(chunk("x" * 60_000))

    upstream.respond = flood
    async with harness.proxy(upstream_url=upstream.url, request_timeout_seconds=0.5) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=1024)
        body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await asyncio.wait_for(upstream.closed.wait(), 3)
        await until(lambda: len(proxy.lifecycle._running) == 0, 3)
        writer.transport.abort()
        assert reader is not None
