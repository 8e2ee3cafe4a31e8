"""A stream's head, events and comments, in time."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from aiohttp import web

from openai_protocol.errors import Unavailable
from openai_proxy.event_stream import EventStream
from tests.proxy import harness
from tests.proxy.harness import DONE, StandIn, answered_json, chunk


class Client:
    """What a client got."""

    def __init__(self) -> None:
        self.messages: list[MutableMapping[str, Any]] = []

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [m["body"] for m in self.messages if m["type"] == "http.response.body"]


async def test_no_head_before_the_first_event() -> None:
    """Without events or silence nothing is sent, so that an error may still have its status."""
    client = Client()
    async with EventStream(client.send, 60) as stream:
        await stream.write(b"")
        assert not stream.has_begun
        await stream.write(b"data: 1\n\n")
    assert [m["type"] for m in client.messages] == ["http.response.start", "http.response.body"]


async def test_silence_is_filled_with_comments() -> None:
    """Nothing but silence brings comments, one a period, and none after the end."""
    client = Client()
    async with EventStream(client.send, 0.02) as stream:
        await asyncio.sleep(0.07)
        num_comments = len(client.bodies)
        await stream.end()
        await asyncio.sleep(0.05)
    assert num_comments >= 2
    assert client.bodies[:num_comments] == [b": keep-alive\n\n"] * num_comments
    assert client.bodies[num_comments:] == [b""]


async def test_a_failure_is_the_last_event() -> None:
    """An error after the head becomes an event, and the stream ends."""
    client = Client()
    async with EventStream(client.send, 0) as stream:
        await stream.write(b"data: 1\n\n")
        await stream.fail(Unavailable("gone").body())
    assert b'"message": "gone"' in client.bodies[-2]
    assert client.messages[-1]["more_body"] is False


async def test_a_silent_upstream(upstream: StandIn) -> None:
    """A stream whose upstream thinks gets comments, and then its events."""

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.15)
        response = await harness.start_stream(request)
        await response.write(chunk("a") + DONE)
        return response

    upstream.respond = slow
    async with harness.proxy(upstream_url=upstream.url, keepalive_seconds=0.05) as proxy:
        stream = await proxy.stream()
    assert stream.startswith(": keep-alive\n\n")
    assert stream.endswith((chunk("a") + DONE).decode())


async def test_an_error_after_a_comment(upstream: StandIn) -> None:
    """Once a comment is out an upstream's refusal comes as an event, for the status is gone."""

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.12)
        refuse = answered_json({"error": {"message": "no", "type": "x", "code": "y"}}, status=400)
        return await refuse(request)

    upstream.respond = slow
    async with harness.proxy(upstream_url=upstream.url, keepalive_seconds=0.05) as proxy:
        stream = await proxy.stream()
    assert '"message": "no"' in stream
    assert "[DONE]" not in stream
