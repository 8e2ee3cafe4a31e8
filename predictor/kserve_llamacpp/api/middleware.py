"""What happens to every HTTP request before and after its route: pure ASGI, answers unbuffered."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from http_edge.bytes_in_flight import COST_PER_BYTE, COST_PER_REQUEST, ByteBudget, Lease, cost_of
from http_edge.client_connection import client_connection, send_last
from http_edge.head_rules import HeadRules, check_inference_length
from openai_protocol.errors import (
    ApiError,
    RequestTooLarge,
    Unavailable,
    internal_error,
    overloaded,
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# what probes and scrapers ask all the time; refusals of other paths are logged
_PROBES = re.compile(r"/|/metrics|/v2/health/\w+|(/openai)?/v1/models(/[^/]*)?")


class RequestGate:
    """Names a request, reads its body within the limit, stops its work when its client leaves.

    It also writes the access log and renders what nobody else caught; owner: the application.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        head_rules: HeadRules,
        budget: ByteBudget,
        is_draining: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._head_rules = head_rules
        self._budget = budget
        self._is_draining = is_draining
        self._clock = clock
        self._log = structlog.get_logger("access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)  # before the request is named: an id given twice is none
        lease = Lease(self._budget)
        exchange = Exchange(scope, send, self._is_draining, self._clock, lease)
        structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
        try:
            if refusal is not None:
                raise refusal
            body = await self._read_body(scope, receive, lease)
            if body is None:
                exchange.note_lost_client()
            else:
                check_inference_length(scope["headers"], len(body))
                await self._run(scope, receive, exchange, body)
        except ApiError as error:
            await exchange.refuse(error)
        except Exception:
            self._log.exception("request_failed")
            await exchange.refuse(internal_error())
        finally:
            lease.release()
            exchange.let_go()
            log = self._log.debug if exchange.is_probe else self._log.info
            log("request", **exchange.facts())
            structlog.contextvars.unbind_contextvars("request_id")

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Put the head into one form; return why that cannot be done."""
        try:
            self._head_rules.check(scope)
        except ApiError as error:
            return error
        return None

    async def _run(self, scope: Scope, receive: Receive, exchange: Exchange, body: bytes) -> None:
        """Run the application until it is done; cancel it when its client leaves before that.

        The server's connection tells of that; where there is none, a task waits for it.
        """
        connection = client_connection(scope)
        if connection is None:
            await self._run_watched(scope, receive, exchange, body)
            return
        task = asyncio.current_task()
        assert task is not None
        has_been_cancelled = False

        def cancel() -> None:
            nonlocal has_been_cancelled
            if not exchange.is_complete:
                has_been_cancelled = True
                task.cancel()

        if connection.is_lost:
            exchange.has_client_left = True
            return
        connection.on_lost = cancel
        num_cancelled = task.cancelling()
        try:
            await self._app(scope, _replay(body), exchange.send)
        except asyncio.CancelledError:
            if not has_been_cancelled or task.cancelling() > num_cancelled + 1:
                raise  # the server ends
        finally:
            if connection.on_lost is cancel:  # the next request may watch it already
                connection.on_lost = None
            if has_been_cancelled:
                exchange.has_client_left = True
                task.uncancel()

    async def _run_watched(
        self, scope: Scope, receive: Receive, exchange: Exchange, body: bytes
    ) -> None:
        async def run() -> None:
            await self._app(scope, _replay(body), exchange.send)

        work = asyncio.create_task(run())
        watch = asyncio.create_task(_client_left(receive))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if work.done() or exchange.is_complete:
                await work
            else:
                exchange.has_client_left = True
        finally:
            for task in (work, watch):
                if not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    async def _read_body(self, scope: Scope, receive: Receive, lease: Lease) -> bytes | None:
        """Return the body, None when the client left before its end.

        Raises RequestTooLarge, and Unavailable where there is no room for it just now.
        """
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                self._check_size(int(value))
                if not lease.could_take(COST_PER_BYTE * int(value)):
                    raise _no_room()
        chunks = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            self._check_size(size)
            if chunk and not lease.take(cost_of(chunk)):
                raise _no_room()
            chunks.append(chunk)
            if not message.get("more_body", False):
                if scope["method"] == "POST" and not lease.take(COST_PER_REQUEST):
                    raise _no_room()
                return b"".join(chunks)

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            raise RequestTooLarge(
                f"The request body is larger than this server's limit of {self._max_body_bytes} "
                "bytes (--max_body_bytes)."
            )


class Exchange:
    """One request and its answer, as the access log tells of it; owner: its RequestGate call."""

    def __init__(
        self,
        scope: Scope,
        send: Send,
        is_draining: Callable[[], bool],
        clock: Callable[[], float],
        lease: Lease,
    ) -> None:
        self._connection = client_connection(scope)
        self._lease = lease
        self._scope = scope
        self._send = send
        self._is_draining = is_draining
        self._clock = clock
        self._began = clock()
        self._first_byte: float | None = None
        self._status: int | None = None
        self.is_complete = False
        self._is_written = False
        self.has_client_left = False
        self.request_id = self._name()
        scope["access_log"] = {}  # routes put here what they know: model, tokens

    @property
    def path(self) -> str:
        """The request's path."""
        return str(self._scope["path"])

    @property
    def is_probe(self) -> bool:
        """Whether somebody only looks after the server: ready, not ready yet, or figures."""
        is_expected = self._status in (200, 503)
        return self._scope["method"] == "GET" and is_expected and bool(_PROBES.fullmatch(self.path))

    def facts(self) -> dict[str, Any]:
        """Return what the access log tells: never a body, never a key."""
        now = self._clock()
        facts: dict[str, Any] = {
            "method": self._scope["method"],
            "path": self.path[:256],
            "status": self._status,
            "duration_seconds": round(now - self._began, 6),
        }
        if self._first_byte is not None:
            facts["first_byte_seconds"] = round(self._first_byte - self._began, 6)
        if self.has_client_left:
            facts["client_left"] = True
        facts.update(self._scope["access_log"])
        return facts

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on, with the request's id in its head.

        While the server drains the connection is closed after it: a client that keeps it would
        send its next request into a connection that is just being closed.
        """
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            if self._is_draining():
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            if self._first_byte is None:
                self._first_byte = self._clock()
            self.is_complete = not message.get("more_body", False)
            if self.is_complete:
                self._lease.charge(len(message.get("body", b"")))
                await send_last(self._send, message, self._connection)
                self._is_written = True
                return
        await self._send(message)

    def note_lost_client(self) -> None:
        """Take note that the rest of the body will not come: left, or refused for its slowness."""
        refusal = None if self._connection is None else self._connection.refusal
        if refusal is None:
            self.has_client_left = True
        else:
            self._status = refusal.status

    def let_go(self) -> None:
        """Wait for the client no more: what it has not read goes with its connection.

        After the end of an answer that was read, what is unread may be of the next one.
        """
        if self._connection is not None and not self._is_written:
            self._connection.let_go()

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, unless the answer has begun."""
        if self._status is not None:
            return
        body = error.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(k.encode(), v.encode()) for k, v in error.headers().items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _name(self) -> str:
        """Return the client's request id, or a new one, and leave it in the request's head."""
        headers = self._scope["headers"]
        given = dict(headers).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid4().hex}"
        self._scope["headers"] = [
            *((k, v) for k, v in headers if k != b"x-request-id"),
            (b"x-request-id", request_id.encode()),
        ]
        return request_id


def _no_room() -> Unavailable:
    return overloaded("The server has as many bytes in flight as its memory allows")


def _replay(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        # the gate watches the connection, and cancels whoever waits here
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # never done

    return receive


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
