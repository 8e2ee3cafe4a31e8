"""A stream of events to a client: its head, its events, and comments while there are none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from openai_protocol.sse import MEDIA_TYPE, comment, event

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LAST_WORDS_SECONDS = 2.0
_KEEP_ALIVE = comment("keep-alive")
_HEAD = [
    (b"content-type", MEDIA_TYPE.encode() + b"; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
]


class EventStream:
    """Sends one stream; owner: the request's task, which enters it as an async context.

    The head waits for the first event, so that errors before it keep their status; or for the first
    comment, which is sent when nothing was for `keepalive_seconds` (0: never).
    """

    def __init__(self, send: Send, keepalive_seconds: float) -> None:
        self._send = send
        self._keepalive_seconds = keepalive_seconds
        self.has_begun = False
        self._has_ended = False
        self._has_sent = False  # since the timer was set
        self._timer: asyncio.TimerHandle | None = None
        self._comments: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventStream:
        self._set_timer()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_comments()

    async def write(self, events: bytes) -> None:
        """Send whole events; nothing for none."""
        if not events:
            return
        self._has_sent = True
        await self._begin()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        """Send the end."""
        self._stop_comments()
        self._has_ended = True
        await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, told: bytes) -> None:
        """Tell why the stream ends, in a line; a client that does not read is not waited for."""
        if self._has_ended:
            return
        self._stop_comments()
        try:
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self.write(event(told))
                await self.end()
        except TimeoutError:
            pass

    async def _begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEAD})

    def _set_timer(self) -> None:
        if self._keepalive_seconds:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._keepalive_seconds, self._on_timer)

    def _on_timer(self) -> None:
        # One timer a stream and period: events do not touch it, or each would cost as much.
        if not self._has_sent and (self._comments is None or self._comments.done()):
            self._comments = asyncio.get_running_loop().create_task(self._comment())
        self._has_sent = False
        self._set_timer()

    async def _comment(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})

    def _stop_comments(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._comments is not None:
            self._comments.cancel()
