"""A client's connection: uvicorn's, with bounds on heads, times, answers that nobody reads."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from http import HTTPStatus
from typing import Any, ClassVar

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from http_edge import bounds, head_rules
from http_edge.bytes_in_flight import COST_PER_BYTE, COST_PER_HEADER, Lease
from http_edge.client_connection import EXTENSION, PART_BYTES, ClientConnection, certificate_name
from http_edge.connections import Connections
from http_edge.deadlines import Progress
from openai_protocol.errors import ApiError, ErrorCode, InvalidRequest, overloaded

# So long a TLS client may take to say goodbye, once the server ends: some never do.
GOODBYE_SECONDS = 1.0
_PART_BYTES = 32 * 1024  # what the parser gets at a time
_FREE_HEAD_COST = 8 * 1024  # what costs more is in flight, until the head is complete
_ACKED = struct.Struct("<Q")
_ACKED_AT = 120  # tcpi_bytes_acked in Linux's tcp_info


# What a connection waits for: the next request, the rest of a head or of a body, the server. Plain
# numbers, for they are looked at several times for each request.
_IDLE, _HEAD, _BODY, _ANSWER = range(4)

log = structlog.get_logger("http_edge")


class RefusedError(Exception):
    """What the parser reads is refused; raised in its callbacks, to stop it."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol, within bounds; `protocol` makes the class for a server.

    The scope has, as ASGI's extensions, a `ClientConnection`, which tells when the client is gone
    and how much it has read, and the name in a client's certificate.
    """

    server_connections: ClassVar[Connections]
    _turn = _HEAD
    _since: float | None = None  # when it was first looked at in this turn
    _num_received = 0
    _num_in_hand = 0  # bytes of the part that is parsed now
    _num_head_bytes = 0
    _chunk_room = 0
    _client_name: str | None = None
    _refusal: ApiError | None = None
    _has_coding = False
    _is_ending = False
    _goodbye: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to wait for the first head, unless there are too many connections."""
        super().connection_made(transport)
        self._client = ClientConnection(transport.abort)
        self._body = Progress()
        self._answer = Progress()
        self._head = Lease(self.server_connections.budget)
        self._unread = Lease(self.server_connections.budget)
        connection = transport.get_extra_info("ssl_object")
        if isinstance(connection, ssl.SSLObject):
            transport.set_write_buffer_limits(PART_BYTES)  # TLS has eight times as much
            self._client_name = certificate_name(connection)
        if not self.server_connections.add(self):
            self._refuse(overloaded("The server has as many connections as it may have"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what is held."""
        self.server_connections.remove(self)
        self._head.release()
        self._unread.release()
        if self._goodbye is not None:
            self._goodbye.cancel()
        super().connection_lost(exc)
        self._client.lose()

    def data_received(self, data: bytes) -> None:
        """Parse, in parts: what one part makes too long is seen before the next."""
        self._num_received += len(data)
        if len(data) <= _PART_BYTES:
            self._parse(data)
            return
        for at in range(0, len(data), _PART_BYTES):
            if self.transport.is_closing():
                return
            self._parse(data[at : at + _PART_BYTES])

    def _parse(self, data: bytes) -> None:
        self._num_in_hand = len(data)
        super().data_received(data)
        turn = self._turn
        if turn == _ANSWER or self.transport.is_closing():
            return
        if turn == _BODY:
            self._chunk_room -= len(data)
            if self._chunk_room < 0:
                self._refuse(_bad_request("Its body in chunks has too much that is no body."))
            return
        self._num_head_bytes += len(data)
        error = self._head_error(self._num_head_bytes)
        if error is not None:
            self._refuse(error)

    def _head_error(self, num_bytes: int) -> ApiError | None:
        """Return why a head of so many bytes, as far as it has come, is not taken."""
        max_bytes = self.server_connections.bounds.max_head_bytes
        if num_bytes > max_bytes:
            return _too_long(f"The request's head is longer than {max_bytes} bytes.")
        if len(self.headers or ()) > bounds.MAX_HEADERS:  # none before the first head
            return _too_long(f"The request has more than {bounds.MAX_HEADERS} headers.")
        cost = COST_PER_BYTE * num_bytes + COST_PER_HEADER * len(self.headers or ())
        if cost > _FREE_HEAD_COST and not self._head.take(cost - self._head.held):
            return overloaded("The server has as many bytes in flight as it may have")
        return None

    # The parser's callbacks

    def on_message_begin(self) -> None:
        """Begin to count a head; one that begins amid a part counts from the next part on."""
        super().on_message_begin()
        extensions: dict[str, Any] = {EXTENSION: self._client}
        if self._client_name is not None:
            extensions["tls"] = {"client_cert_name": self._client_name}
        self.scope["extensions"] = extensions
        if self._turn > _HEAD:
            self._num_head_bytes = -self._num_in_hand
        if self._turn != _HEAD:
            self._turn, self._since = _HEAD, None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, as uvicorn does, and note what says how the body is sent."""
        name = name.lower()
        if name == b"transfer-encoding":
            self._has_coding = True
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Stop counting; the body has bounds of its own. Trailers are no headers."""
        if len(self.headers) > bounds.MAX_HEADERS or (
            self._num_head_bytes + self._num_in_hand > self.server_connections.bounds.max_head_bytes
        ):
            num_bytes = len(self.url) + sum(
                len(name) + len(value) + 4 for name, value in self.headers
            )
            self._refusal = self._head_error(num_bytes)
        elif len(self.pipeline) >= bounds.MAX_PIPELINED:
            self._refusal = _bad_request("Too many requests were sent ahead of their answers.")
        elif self._has_coding:
            self._has_coding = False
            self._refusal = self._framing_error()
        if self._refusal is not None:
            raise RefusedError
        if not self.url.startswith(b"/") and (target := head_rules.target_of(self.url)) is not None:
            self.scope["extensions"][head_rules.TARGET] = target  # type: ignore[assignment]  # ours
        self._turn, self._since = _BODY, None
        self._num_head_bytes = 0
        if self._head.held:
            self._head.release()
        self._chunk_room = bounds.MAX_CHUNK_OVERHEAD_BYTES
        self._body.stop()
        super().on_headers_complete()
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._chunk_room += (1 + bounds.CHUNK_OVERHEAD_RATIO) * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Read on: uvicorn stops while much of a body waits, and would not see a client leave."""
        super().on_message_complete()
        self._since = None
        if self.cycle.response_complete:
            self._turn = _IDLE  # answered before its end
        else:
            self._turn = _ANSWER
            self.server_connections.waiting.pop(self, None)
        if not self.pipeline:
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the envelope; uvicorn calls it."""
        self._refuse(self._refusal or _bad_request("This is no valid HTTP request."))

    # Answers

    def on_response_complete(self) -> None:
        """Go on to the next request, or close; uvicorn would set a timer for each."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            if self._is_ending:
                self._expect_goodbye()
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        if self._turn == _ANSWER:
            self._turn = _IDLE
        self._since = None  # what the client sends next had to wait for this answer
        self.server_connections.waiting[self] = None

    def pause_writing(self) -> None:
        """Take note that much waits for the client; what waits is in flight."""
        super().pause_writing()
        self._client.is_full = True
        self._unread.charge(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Take note that the client has read nearly all."""
        super().resume_writing()
        self._unread.release()
        self._answer.stop()
        self._client.note_room()

    # Too slow

    def check(self, now: float) -> None:
        """End the connection if its client is too slow; the server calls it every so often."""
        times = self.server_connections.bounds
        if self._is_unread(now, times):
            self.transport.abort()
            return
        if self.transport.is_closing() or self._turn == _ANSWER:
            return
        cycle = self._cycle
        is_answered = cycle is None or cycle.response_complete
        if self._since is None or (self._turn != _BODY and not is_answered):
            self._since = now  # a pipelined head may wait for the answer before
        waited = now - self._since
        if self._turn == _BODY:
            if self.flow.read_paused:
                self._body.stop()  # it is not the client that is slow
            elif is_answered and waited >= times.body_seconds:
                self.drop()
            elif self._body.is_missed(
                now,
                self._num_received,
                times.body_seconds,
                times.least_bytes(times.body_seconds),
            ):
                self._end_body()
        elif waited >= (times.idle_seconds if self._turn == _IDLE else times.head_seconds):
            self.drop()

    def drop(self) -> None:
        """End the connection without a word."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()
            self._expect_goodbye()

    def _is_unread(self, now: float, times: bounds.Bounds) -> bool:
        """Tell whether what was sent waits for too long."""
        num_waiting = self.transport.get_write_buffer_size()
        if not num_waiting:
            self._answer.stop()
            return False
        return self._answer.is_missed(
            now,
            self._num_acknowledged(num_waiting),
            times.write_seconds,
            min(times.least_bytes(times.write_seconds), num_waiting),
        )

    def _num_acknowledged(self, num_waiting: int) -> int:
        """Return a count that grows by the bytes that the client's side has taken.

        What the event loop has handed on says little: the kernel's buffer holds megabytes.
        """
        connection = self.transport.get_extra_info("socket")
        try:
            told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            (acknowledged,) = _ACKED.unpack_from(told, _ACKED_AT)
        except (AttributeError, OSError, struct.error):
            acknowledged = 0
        return int(acknowledged) or -num_waiting

    def _end_body(self) -> None:
        if not self._can_tell():
            self.drop()
            return
        times = self.server_connections.bounds
        self._refuse(
            InvalidRequest(
                f"The request's body came too slowly: less than {times.min_bytes_per_second} bytes "
                f"a second in {times.body_seconds:g} seconds.",
                status=408,
                code=ErrorCode.REQUEST_TIMEOUT,
            )
        )

    # The end

    def shutdown(self) -> None:
        """Close the connection, at once or after its answer, since the server ends."""
        super().shutdown()
        self._is_ending = True
        self._expect_goodbye()

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        return getattr(self, "cycle", None)  # None before the first head, whatever its type says

    def _expect_goodbye(self) -> None:
        if self.scheme == "https" and self.transport.is_closing():
            self._goodbye = self.loop.call_later(GOODBYE_SECONDS, self._part)

    def _part(self) -> None:
        if self.transport.get_write_buffer_size():
            self._expect_goodbye()  # it still reads its answer
        else:
            self.transport.abort()

    def _framing_error(self) -> ApiError | None:
        """Return why it cannot be told where the request ends: the parser lets some of it pass."""
        try:
            head_rules.check_framing(self.headers, self.parser.get_http_version())
        except ApiError as error:
            return error
        return None

    def _can_tell(self) -> bool:
        """Tell whether what is sent now would be taken for the answer to what is refused.

        It would not while an earlier request waits for its answer, or amid an answer.
        """
        cycle = self._cycle
        if self.pipeline:
            return False
        if cycle is None or cycle.response_complete:
            return True
        return self._turn != _HEAD and not cycle.response_started

    def _refuse(self, error: ApiError) -> None:
        """Tell the client why the connection ends, if that can be told, and end it."""
        if self._turn == _BODY:
            self._client.refusal = error  # its request tells the log
        else:
            log.info("request_refused", status=error.status, error_code=str(error.code))
        if not self._can_tell():
            self.transport.close()
            return
        body = error.body()
        headers = {**error.headers(), "connection": "close"}
        told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{told}"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def protocol(connections: Connections) -> type[BoundedConnection]:
    """Return the class of a server's connections, for uvicorn's `http`."""

    class ServersConnection(BoundedConnection):
        pass

    ServersConnection.server_connections = connections
    return ServersConnection


def _too_long(text: str) -> InvalidRequest:
    return InvalidRequest(text, status=431)


def _bad_request(text: str) -> InvalidRequest:
    return InvalidRequest(text, status=400)
