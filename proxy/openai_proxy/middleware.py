"""What every request goes through before its endpoint, as plain ASGI; nothing buffers.

    Observe                   names the request, times it, tells the observers; while the server
                              drains, it sends clients with open connections elsewhere
    CheckHead                 refuses heads that are not clear, and foreign hosts (`heads`)
    AllowOrigins              answers preflights, names who may read answers (`cors`, if set)
    RenderErrors              turns what is raised below into an answer of the chosen form
    RequireClientCertificate  refuses clients that have shown none (`tls`, if set)
    LimitBody                 refuses bodies that are too long (`limits`)
    LimitConcurrency          refuses what is more than may be in flight or run at a time (`limits`)

A request goes through them in this order.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import structlog

from http_edge.bytes_in_flight import lease_of
from http_edge.client_connection import PART_BYTES, ClientConnection, client_connection, send_last
from openai_protocol.errors import ApiError, ErrorCode, internal_error
from openai_proxy import error_forms
from openai_proxy.error_forms import ErrorForm
from openai_proxy.exchange import (
    CLIENT_CLOSED_REQUEST,
    LOG_FIELDS,
    AttemptObserver,
    ClientGoneError,
    Exchange,
    Observer,
    attach,
    exchange_of,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_TRACE_HEADERS = frozenset({b"traceparent", b"tracestate"})
_TRACE_VALUE = re.compile(rb"[ -~]{1,512}")

# The end of an answer that needs no waiting for its client: much less than is written ahead.
_SHORT_BYTES = PART_BYTES // 4

log = structlog.get_logger("openai_proxy")


class Observe:
    """Gives each request its id and its `Exchange`, and tells the observers of start and end.

    At its end it gives back what the request holds of the server.

    Closes each connection after its answer once the server drains: a client that keeps its
    connection would not notice before the listener is gone, and would then send its next request
    into a connection that is just being closed.
    """

    def __init__(
        self,
        app: App,
        observers: Sequence[Observer],
        clock: Callable[[], float] = time.perf_counter,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._observers = tuple(observers)
        self._attempt_observers = tuple(
            observer for observer in observers if isinstance(observer, AttemptObserver)
        )
        self._clock = clock
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = dict(scope["headers"])
        exchange = Exchange(
            request_id=_request_id(headers),
            method=scope["method"],
            path=scope.get("raw_path", b"").decode("ascii", "replace")[:256],
            started_at=self._clock(),
            server=scope.get("server"),
            trace_headers=_trace_headers(scope) if _TRACE_HEADERS & headers.keys() else (),
            observers=self._attempt_observers,
        )
        attach(scope, exchange)
        exchange.log_fields["request_id"] = exchange.request_id
        LOG_FIELDS.set(exchange.log_fields)
        for observer in self._observers:
            observer.request_started(exchange)
        connection = client_connection(scope)
        try:
            await self._app(scope, receive, self._watched(exchange, send, connection))
        finally:
            lease = lease_of(scope)
            if lease is not None:
                lease.release()
            if connection is not None and not exchange.is_written:
                connection.let_go()  # what is unread afterwards may be of the next answer
            exchange.finished_at = self._clock()
            for observer in self._observers:
                observer.request_finished(exchange)

    def _watched(self, exchange: Exchange, send: Send, connection: ClientConnection | None) -> Send:
        clock = self._clock

        # Returns what `send` returns instead of waiting for it: a coroutine less for each chunk.
        def watched_send(message: Message) -> Awaitable[None]:
            body = message.get("body")
            if body:
                if exchange.first_byte_at is None and not body.startswith(b":"):  # no comment
                    exchange.first_byte_at = clock()
                if b'_tokens"' in body:  # no text has it: its quote would be escaped
                    exchange.note_usage(body)
            elif message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [*message.get("headers", ())]
                headers.append((b"x-request-id", exchange.request_id.encode()))
                if self._is_draining():
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
                return send(message)
            if message.get("more_body", False):
                return send(message)
            if len(body or b"") <= _SHORT_BYTES and not (connection and connection.is_full):
                exchange.is_written = True  # it fits into what the server writes ahead
                return send(message)
            return send_the_last(message)

        async def send_the_last(message: Message) -> None:
            await send_last(send, message, connection)
            exchange.is_written = True

        return watched_send


class RenderErrors:
    """Answers what is raised below: an `ApiError` as it says, all else as `internal_error`.

    Once an answer has begun nothing can be said any more: the connection is closed instead. The
    form is left in the scope, for those that tell of errors themselves.
    """

    def __init__(self, app: App, form: ErrorForm = error_forms.FORMS["openai"]) -> None:
        self._app = app
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = exchange_of(scope)
        error_forms.attach(scope, self._form)
        try:
            await self._app(scope, receive, send)
        except ClientGoneError as error:
            connection = client_connection(scope)
            refusal = None if connection is None else connection.refusal
            if refusal is not None and exchange.status is None:
                exchange.status, exchange.error_code = refusal.status, str(refusal.code)
            else:
                exchange.is_client_gone = True
                exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
            let_go(error)
        except ApiError as error:
            await self._answer(exchange, send, error)
            let_go(error)
        except Exception as error:
            log.exception("request_failed")
            await self._answer(exchange, send, internal_error())
            let_go(error)

    async def _answer(self, exchange: Exchange, send: Send, error: ApiError) -> None:
        exchange.error_code = str(error.code)
        if exchange.status is None:
            await send_error(send, error, self._form)


def let_go(error: Exception) -> None:
    """Let go of an error's frames: they hold the request, and the error itself, for good.

    Only the garbage collector would find such a cycle, and it looks seldom.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None


async def send_error(send: Send, error: ApiError, form: ErrorForm) -> None:
    """Send an error as a whole answer."""
    headers = [(name.encode(), value.encode()) for name, value in error.headers().items()]
    if error.code == ErrorCode.REQUEST_TOO_LARGE:
        headers.append((b"connection", b"close"))  # the rest of its body may never have been read
    await send_json(send, form.status(error), form.body(error), headers)


async def send_json(
    send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send a JSON body as a whole answer."""
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body; raises ClientGoneError."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return bytes(message.get("body", b""))
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()


def header(scope: Scope, wanted: bytes) -> bytes | None:
    """Return a header's value, of several the first; None where there is none."""
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value)
    return None


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return str(given, "ascii")
    return _uuid4()  # some upstreams take nothing else: llama-cpp-python's server


def _uuid4() -> str:
    """Return a random UUID; the standard library's makes an object first, which is slow.

    Source: RFC 9562, 5.4.
    """
    number = int.from_bytes(os.urandom(16)) & _RANDOM_BITS | _VERSION_4
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_VERSION_4 = 4 << 76 | 0b10 << 62
_RANDOM_BITS = ~(0xF << 76 | 0b11 << 62)


def _trace_headers(scope: Scope) -> list[tuple[str, str]]:
    """Return the headers of W3C's trace context, which upstreams get, too."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        if name in _TRACE_HEADERS and _TRACE_VALUE.fullmatch(value):
            found.setdefault(name, []).append(value)
    return [(name.decode(), b",".join(values).decode()) for name, values in found.items()]
