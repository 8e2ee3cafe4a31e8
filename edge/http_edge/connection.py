"""What uvicorn's parser lacks: a bound on heads, errors in our form, names in certificates."""

from __future__ import annotations

import asyncio
import ssl
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from http_edge.client_connection import EXTENSION, ClientConnection, certificate_name
from openai_protocol.errors import InvalidRequest

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0
# So long a TLS client may take to say goodbye, once the server ends: some never do.
GOODBYE_SECONDS = 1.0


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol; a head that is too long gets 431, one that does not end is dropped.

    The scope has, as ASGI's extensions, a `ClientConnection`, which tells when the client is gone,
    and the name in a client's certificate.
    """

    max_head_bytes = MAX_HEAD_BYTES
    head_seconds = HEAD_SECONDS
    _is_in_head = True
    _num_head_bytes = 0
    _head_until = 0.0
    _timer: asyncio.TimerHandle | None = None
    _client_name: str | None = None
    _is_ending = False
    _goodbye: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._connection = ClientConnection()
        connection = transport.get_extra_info("ssl_object")
        if isinstance(connection, ssl.SSLObject):
            self._client_name = certificate_name(connection)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_timer()
        if self._goodbye is not None:
            self._goodbye.cancel()
        super().connection_lost(exc)
        self._connection.lose()

    def on_message_begin(self) -> None:
        """Begin to count the next request's head, on a connection that is used again."""
        super().on_message_begin()
        extensions: dict[str, Any] = {EXTENSION: self._connection}
        if self._client_name is not None:
            extensions["tls"] = {"client_cert_name": self._client_name}
        self.scope["extensions"] = extensions
        if not self._is_in_head:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Stop counting; the body has a limit of its own."""
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Read on: uvicorn stops while much of a body waits, and would not see a client leave."""
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse, then look at how long the unfinished head has become."""
        super().data_received(data)
        if self._is_in_head and not self.transport.is_closing():
            self._num_head_bytes += len(data)
            if self._num_head_bytes > self.max_head_bytes:
                self._refuse(
                    InvalidRequest(
                        f"The request's head is longer than {self.max_head_bytes} bytes.",
                        status=431,
                    )
                )

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the envelope; uvicorn calls it.

        While an answer is being sent nothing can be put into it: the connection ends with it.
        """
        cycle = self._cycle
        is_answering = cycle and cycle.response_started and not cycle.response_complete
        if self.pipeline or is_answering:
            self.transport.close()
            return
        self._refuse(InvalidRequest("This is no valid HTTP request.", status=400))

    def shutdown(self) -> None:
        """Close the connection, at once or after its answer, since the server ends."""
        super().shutdown()
        self._is_ending = True
        self._expect_goodbye()

    def on_response_complete(self) -> None:
        """Go on to the next request, or close."""
        super().on_response_complete()
        if self._is_ending:
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

    def _await_head(self) -> None:
        self._is_in_head = True
        self._num_head_bytes = 0
        self._head_until = self.loop.time() + self.head_seconds
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._on_timer)

    def _on_timer(self) -> None:
        # One timer a connection: setting and stopping one for each request would cost more.
        # While an answer runs, the next head may wait for it.
        cycle = self._cycle
        is_waiting = self._is_in_head and (cycle is None or cycle.response_complete)
        rest = self._head_until - self.loop.time() if is_waiting else self.head_seconds
        if rest > 0:
            self._timer = self.loop.call_later(rest, self._on_timer)
        else:
            self._drop()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self) -> None:
        self.transport.close()

    def _refuse(self, error: InvalidRequest) -> None:
        body = error.body()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
