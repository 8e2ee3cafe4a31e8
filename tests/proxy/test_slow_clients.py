"""Clients that are slow to send or to read take no places and no memory from others."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web

from http_edge.bytes_in_flight import COST_PER_REQUEST, MIB, least_capacity
from openai_proxy.config import ConfigError, load
from openai_proxy.exchange import Exchange
from openai_proxy.middleware import Observe, Receive, RenderErrors, Scope, Send, read_body
from tests.edge.serving import rest, serve
from tests.proxy import harness
from tests.proxy.harness import CHAT, COMPLETION, MESSAGES, Proxy, StandIn, until
from tests.proxy.test_request_head import talk

# aiohttp's client warns of what the proxy does well: its bodies are bounded.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
LONG = {**COMPLETION, "x": "a" * 4 * MIB}
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"


def posted(stream: bool = False, size: int = 0) -> bytes:
    """A chat request, with so many bytes more."""
    body = json.dumps({"messages": MESSAGES, "stream": stream, "x": "a" * size}).encode()
    return POST % len(body) + body


@asynccontextmanager
async def silent(proxy: Proxy, *parts: bytes) -> AsyncIterator[socket.socket]:
    """A client that sends parts and then neither sends nor reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", proxy.port))
    try:
        for part in parts:
            await loop.sock_sendall(client, part)
        yield client
    finally:
        client.close()


async def never(request: web.Request) -> web.StreamResponse:
    """Leave a request without its answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def test_unfinished_bodies_take_no_places(upstream: StandIn) -> None:
    """As many half bodies as requests may run keep nobody out."""
    async with (
        harness.proxy(upstream_url=upstream.url, max_concurrent_requests=5) as proxy,
        AsyncExitStack() as clients,
    ):
        for _ in range(10):
            await clients.enter_async_context(silent(proxy, POST % 100 + b"{"))
        await until(lambda: len(proxy.lifecycle._running) == 10)
        assert (await proxy.chat())[0] == 200


async def test_a_slow_body_is_given_up(upstream: StandIn) -> None:
    """A body that does not come gets 408, and nothing of it stays."""
    async with harness.proxy(upstream_url=upstream.url, body_timeout_seconds=0.2) as proxy:
        answered = await talk(proxy, POST % 100 + b"{")
        assert answered.startswith(b"HTTP/1.1 408 ")
        assert b'"request_timeout"' in answered
        await until(lambda: len(proxy.lifecycle._running) == 0)
        assert proxy.lifecycle._budget.used == 0


async def test_what_the_log_says_of_a_slow_body() -> None:
    """It has the status that the client got, and no client that has left."""
    ended: list[Exchange] = []

    class Log:
        def request_started(self, exchange: Exchange) -> None:
            """Nothing yet."""

        def request_finished(self, exchange: Exchange) -> None:
            """Keep it."""
            ended.append(exchange)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)

    async with serve(Observe(RenderErrors(app), [Log()]), body_seconds=0.2) as server:
        await server.talk(POST % 100 + b"{")
        await until(lambda: len(ended) == 1)
    assert (ended[0].status, ended[0].error_code) == (408, "request_timeout")
    assert not ended[0].is_client_gone


async def test_an_answer_that_was_read_ends_no_connection() -> None:
    """What is unread while a request ends may be the next answer: its client gets all of it."""
    has_begun = asyncio.Event()
    answers = [b"short", b"a" * 4 * MIB]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer = answers.pop(0)
        length = (b"content-length", b"%d" % len(answer))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        if answers:
            await send({"type": "http.response.body", "body": answer})
            await has_begun.wait()
            await asyncio.sleep(0.05)  # for the buffer to be full
        else:
            has_begun.set()
            await send({"type": "http.response.body", "body": answer})

    two = b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    async with (
        serve(Observe(app, [])) as server,
        server.client(two, receive_buffer=4096) as (reader, _),
    ):
        await asyncio.sleep(0.2)
        assert len(await rest(reader)) > 4 * MIB


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_is_not_read_keeps_its_place(
    upstream: StandIn, is_stream: bool
) -> None:
    """While a client does not read its answer the request runs; then its connection ends."""
    long = b"data: " + json.dumps(harness_chunk()).encode() + b"\n\n"
    events = harness.streamed(*[long] * 8)
    upstream.respond = events if is_stream else harness.answered_json(LONG)
    async with harness.proxy(
        upstream_url=upstream.url, max_concurrent_requests=1, write_timeout_seconds=0.6
    ) as proxy:
        async with silent(proxy, posted(is_stream)):
            await until(lambda: len(proxy.lifecycle._running) == 1)
            await until(lambda: proxy.lifecycle._budget.used >= 64 * 1024)
            assert (await proxy.chat())[0] == 429
            await until(lambda: len(proxy.lifecycle._running) == 0)
        upstream.respond = harness.answered_json(COMPLETION)
        assert (await proxy.chat())[0] == 200
        assert proxy.lifecycle._budget.used == 0


def harness_chunk() -> object:
    """A chunk of a megabyte."""
    choice = {"index": 0, "delta": {"content": "a" * MIB}, "finish_reason": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
    }


async def test_the_deadline_ends_an_answer_that_is_not_read(upstream: StandIn) -> None:
    """When a request's time is over while its client reads slowly, what is unread goes, too."""
    upstream.respond = harness.answered_json(LONG)
    async with (
        harness.proxy(upstream_url=upstream.url, request_timeout_seconds=0.5) as proxy,
        silent(proxy, posted()),
    ):
        await until(lambda: proxy.lifecycle._budget.used > 0)
        await until(lambda: len(proxy.lifecycle._connections) == 0)
        assert proxy.lifecycle._budget.used == 0


# Bytes in flight


async def test_bodies_past_the_budget_are_refused(upstream: StandIn) -> None:
    """What does not fit gets 503 before it is read, or while it comes; small requests do fit.

    A body that waits for its upstream counts twice, one that comes four times.
    """
    upstream.respond = never
    budget = {"max_body_bytes": 4 * MIB, "max_bytes_in_flight": least_capacity(4 * MIB)}
    async with (
        harness.proxy(upstream_url=upstream.url, **budget) as proxy,
        silent(proxy, posted(size=3 * MIB)),
    ):
        await asyncio.wait_for(upstream.began.wait(), 5)
        answered = await talk_once(proxy, POST % (3 * MIB))
        assert answered.startswith(b"HTTP/1.1 503 ")
        assert b'"server_overloaded"' in answered
        assert b"retry-after: " in answered
        chunked = POST.replace(b"content-length: %d", b"transfer-encoding: chunked")
        chunk = b"100000\r\n" + b"a" * MIB + b"\r\n"
        answered = await talk_once(proxy, chunked, chunk, chunk, chunk)
        assert answered.startswith(b"HTTP/1.1 503 ")
        upstream.respond = harness.answered_json(COMPLETION)
        assert (await proxy.chat())[0] == 200
    assert proxy.lifecycle._budget.used == 0


async def talk_once(proxy: Proxy, *parts: bytes) -> bytes:
    """Send parts and return the head and body of one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        for part in parts:
            writer.write(part)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            return head + await reader.read(4096)
    finally:
        writer.close()


async def test_a_long_answer_is_in_flight(upstream: StandIn) -> None:
    """An upstream's whole answer counts while the proxy has it."""
    upstream.respond = harness.answered_json(LONG)
    async with (
        harness.proxy(upstream_url=upstream.url) as proxy,
        silent(proxy, posted()),
    ):
        await until(lambda: proxy.lifecycle._budget.used > 4 * MIB)


def test_a_budget_too_small_for_a_body_is_refused() -> None:
    """A setting that the largest body does not fit stops the start, and says what it needs."""
    settings = {"upstream_url": "http://x:1", "max_body_bytes": 8 * MIB}
    with pytest.raises(ConfigError, match=r"--max-bytes-in-flight is 1000.*--max-body-bytes"):
        load({**settings, "max_bytes_in_flight": 1000})
    least = least_capacity(8 * MIB)
    assert load({**settings, "max_bytes_in_flight": least}).byte_capacity(None) == least


async def test_bounds_can_be_reloaded(upstream: StandIn) -> None:
    """New bounds hold for connections that are there already."""
    async with (
        harness.proxy(upstream_url=upstream.url) as proxy,
        silent(proxy, POST % 100 + b"{") as client,
    ):
        await until(lambda: len(proxy.lifecycle._running) == 1)
        settings = {"upstream_url": upstream.url, "body_timeout_seconds": 0.1}
        await proxy.lifecycle.reload(load({**harness.DEFAULTS, **settings}))
        loop = asyncio.get_running_loop()
        proxy.lifecycle._connections.look()
        await asyncio.sleep(0.15)
        proxy.lifecycle._connections.look()
        answered = await asyncio.wait_for(loop.sock_recv(client, 100), 5)
        assert answered.startswith(b"HTTP/1.1 408 ")


# Long requests of long streams


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/api/chat"])
async def test_a_stream_does_not_hold_its_request(upstream: StandIn, path: str) -> None:
    """Once its answer has begun, nothing of a long request is held any more."""
    ending = asyncio.Event()

    async def respond(request: web.Request) -> web.StreamResponse:
        response = await harness.start_stream(request)
        upstream.bodies.clear()
        request._read_bytes = None
        await response.write(harness.chunk("a"))
        await ending.wait()
        await response.write(harness.DONE)
        return response

    upstream.respond = respond
    text = "a" * 6 * MIB
    prompt = {"prompt": text} if path == "/v1/completions" else {"messages": [_said(text)]}
    body = json.dumps({**prompt, "stream": True, "x": "b" * MIB}).encode()
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        tracemalloc.start()
        try:
            async with proxy.http.post(proxy.url + path, data=io.BytesIO(body)) as response:
                await response.content.readany()
                held, peak = tracemalloc.get_traced_memory()
                assert peak > len(body)
                assert held < MIB
                assert proxy.lifecycle._budget.used == COST_PER_REQUEST
                ending.set()
                await response.read()
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("path", [CHAT, "/api/chat"])
async def test_a_whole_answer_is_waited_for_without_the_parsed_request(
    upstream: StandIn, path: str
) -> None:
    """While an upstream thinks, what is sent of a long request is held, and nothing else of it."""
    ending, is_there = asyncio.Event(), asyncio.Event()

    async def respond(request: web.Request) -> web.StreamResponse:
        upstream.bodies.clear()
        request._read_bytes = None
        is_there.set()
        await ending.wait()
        return web.json_response(COMPLETION)

    upstream.respond = respond
    chat = {"model": "tiny", "messages": [_said("a" * 1000)] * 2000, "stream": False}
    body = json.dumps(chat).encode()
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        tracemalloc.start()
        try:
            asking = asyncio.create_task(_posted(proxy, path, body))
            await asyncio.wait_for(is_there.wait(), 10)
            held, peak = tracemalloc.get_traced_memory()
            assert peak > 3 * len(body)
            assert held < 2 * len(body) + MIB / 2  # what is sent, and what the stand-in received
            assert proxy.lifecycle._budget.used < 3 * len(body)
        finally:
            ending.set()
            tracemalloc.stop()
            assert await asking == 200


async def _posted(proxy: Proxy, path: str, body: bytes) -> int:
    async with proxy.http.post(proxy.url + path, data=io.BytesIO(body)) as response:
        await response.read()
        return response.status


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
