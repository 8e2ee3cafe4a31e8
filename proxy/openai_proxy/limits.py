"""What is let in, checked before any upstream is touched: how large, how many bytes, how many.

    LimitBody         refuses bodies that are too long, before and while they are read
    LimitConcurrency  refuses what is more than may be in flight or run at a time

Both look at bodies while they are read, in this order, and hold nothing of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from http_edge.bytes_in_flight import (
    COST_PER_BYTE,
    COST_PER_REQUEST,
    ByteBudget,
    Lease,
    attach_lease,
    cost_of,
)
from openai_protocol.errors import ErrorCode, RateLimited, RequestTooLarge, Unavailable, overloaded
from openai_proxy.middleware import App, Message, Receive, Scope, Send, header

RETRY_AFTER_SECONDS = 2.0
_MAX_DISCARDED_BYTES = 64 * 1024 * 1024
_DISCARD_SECONDS = 5.0


class Concurrency:
    """How many requests run that count; owner: the server, used in its event loop only.

    It outlives a configuration: those that began under another one still run.
    """

    __slots__ = ("num_running",)

    def __init__(self) -> None:
        self.num_running = 0


class LimitConcurrency:
    """Refuses requests with 429 while as many run as may, with 503 while their bytes have no room.

    Those that make a model work are counted, by their method: GET costs little, and probes must
    see the server as it is when it is busy. They count from when their body is there: a client
    that is slow to send it takes no place from others. They hold bytes from when these come.
    """

    def __init__(
        self, app: App, max_requests: int, concurrency: Concurrency, budget: ByteBudget
    ) -> None:
        self._app = app
        self._max_requests = max_requests
        self._concurrency = concurrency
        self._budget = budget

    # As in `LimitBody` below, it returns what the application returns. What the request holds is
    # given back by `Observe`, with the request's lease.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        budget = self._budget
        admission = _Admission(budget, self._concurrency, self._max_requests)
        counts = scope["method"] == "POST"
        if counts and self._concurrency.num_running >= self._max_requests:
            raise _no_place()
        if budget.used + budget.most_of_one > budget.large_capacity:  # else all fits
            length = header(scope, b"content-length")
            if length is not None and length.isdigit():
                admission.check_bytes(COST_PER_BYTE * int(length))
        attach_lease(scope, admission)

        async def admitted_receive() -> Message:
            message = await receive()
            admission.take_in(message, counts)
            return message

        return self._app(scope, admitted_receive, send)


class _Admission(Lease):
    """What one request holds of the server: bytes, and a place once its body is there."""

    __slots__ = ("_concurrency", "_is_running", "_max_requests")

    def __init__(self, budget: ByteBudget, concurrency: Concurrency, max_requests: int) -> None:
        super().__init__(budget)
        self._concurrency = concurrency
        self._max_requests = max_requests
        self._is_running = False

    def check_bytes(self, cost: int) -> None:
        """Raise Unavailable where a body of this cost has no room; it takes nothing yet."""
        if not self.could_take(cost):
            raise _no_room()

    def take_in(self, message: Message, counts: bool) -> None:
        """Hold a part of the body, and a place with the last; raises RateLimited, Unavailable."""
        if message["type"] != "http.request" or self._is_running:
            return
        is_last = counts and not message.get("more_body", False)
        if is_last and self._concurrency.num_running >= self._max_requests:
            raise _no_place()
        body = message.get("body")
        cost = (cost_of(body) if body else 0) + (COST_PER_REQUEST if is_last else 0)
        if not self.take(cost):
            raise _no_room()
        if is_last:
            self._is_running = True
            self._concurrency.num_running += 1

    def release(self) -> None:
        """Give all back; may be called twice."""
        super().release()
        if self._is_running:
            self._is_running = False
            self._concurrency.num_running -= 1


def _no_place() -> RateLimited:
    return RateLimited(
        "The server is busy with as many requests as it may serve at a time; please try again in a "
        "moment.",
        code=ErrorCode.QUEUE_FULL,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


class LimitBody:
    """Refuses request bodies longer than `max_bytes` with 413."""

    def __init__(self, app: App, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    # It returns what the application returns instead of waiting for it: a coroutine less on the way
    # of each request, and of each part of its answer.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        length = header(scope, b"content-length")
        if length is None or not length.isdigit():
            return self._app(scope, self._counted(receive), send)
        if int(length) <= self._max_bytes:
            return self._app(scope, receive, send)  # the server reads no more than that
        return self._refuse(scope, receive)

    async def _refuse(self, scope: Scope, receive: Receive) -> None:
        expected = header(scope, b"expect")
        if expected is None or expected.lower() != b"100-continue":
            await self._discard(receive)
        raise self._refusal()

    def _counted(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                await self._discard(receive)
                raise self._refusal()
            return message

        return counted_receive

    def _refusal(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"The request body is larger than the limit of {self._max_bytes} bytes."
        )

    async def _discard(self, receive: Receive) -> None:
        """Read on for a while: a client that still sends would not see the answer otherwise."""
        num_bytes = 0
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while num_bytes < _MAX_DISCARDED_BYTES:
                    message = await receive()
                    num_bytes += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            pass


def _no_room() -> Unavailable:
    return overloaded("The server has as many bytes in flight as its memory allows")
