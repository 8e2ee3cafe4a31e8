"""An endpoint that is another one in other words: its request, answer and stream are translated.

The other endpoint serves the request as it serves its own: it reads a translated body and sends to
a translator, so that validation, routes, deadlines and retries are the same, and are there once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import from_json

from openai_protocol.errors import ApiError
from openai_protocol.sse import DONE_PAYLOAD, MEDIA_TYPE, data_of, split_events
from openai_proxy.dialects.openai import broken_stream, invalid_response
from openai_proxy.middleware import App, Message, Receive, Scope, Send, read_body, send_json

Json = dict[str, Any]
Headers = Sequence[tuple[bytes, bytes]]
_REPLACED_HEADERS = frozenset({b"content-type", b"content-length"})


class Translated:
    """Serves requests by an `endpoint` with OpenAI's form.

    `request` turns a body into that endpoint's, `answer` its decoded answer into ours, `events` one
    decoded chunk of its stream into our events (none, often). All three may raise an ApiError.
    """

    def __init__(
        self,
        endpoint: App,
        request: Callable[[bytes], bytes],
        answer: Callable[[Json], bytes],
        events: Callable[[Json], bytes],
    ) -> None:
        self._endpoint = endpoint
        self._request = request
        self._answer = answer
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        translated = _Answering(send, self._answer, self._events)
        await self._endpoint(scope, translated_receive(receive, self._request), translated.send)


def translated_receive(receive: Receive, request: Callable[[bytes], bytes]) -> Receive:
    """Return a `receive` whose first message is the whole body, translated.

    The body is read when it is asked for, which the endpoint does under its deadline.
    """
    has_read = False

    async def read() -> Message:
        nonlocal has_read
        if has_read:
            return await receive()
        has_read = True
        body = request(await read_body(receive))
        return {"type": "http.request", "body": body, "more_body": False}

    return read


class _Answering:
    """Translates what an endpoint sends; a stream's messages hold whole events each."""

    def __init__(
        self, send: Send, answer: Callable[[Json], bytes], events: Callable[[Json], bytes]
    ) -> None:
        self._send = send
        self._answer = answer
        self._events = events
        self._is_stream = False
        self._head: Message = {}
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        """Take one ASGI message."""
        if message["type"] == "http.response.start":
            self._is_stream = _media_type(message["headers"]).startswith(MEDIA_TYPE.encode())
            if self._is_stream:
                await self._send(message)
            else:
                self._head = message
        elif self._is_stream:
            await self._pass(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._whole()

    async def _whole(self) -> None:
        kept = [pair for pair in self._head["headers"] if pair[0].lower() not in _REPLACED_HEADERS]
        body = self._answer(_decoded(bytes(self._body)))
        await send_json(self._send, self._head["status"], body, kept)

    async def _pass(self, message: Message) -> None:
        events, broken = self._translated(message.get("body", b""))
        if events or not message.get("more_body", False):
            await self._send({**message, "body": events})
        if broken is not None:
            raise broken

    def _translated(self, block: bytes) -> tuple[bytes, ApiError | None]:
        """Return our events for a block of whole ones: those before an error, and the error."""
        events = b""
        for raw in split_events(block):
            try:
                events += self._event(raw)
            except ApiError as error:
                return events, error
        return events, None

    def _event(self, raw: bytes) -> bytes:
        data = data_of(raw)
        if data is None:
            return raw + b"\n\n"  # a comment, which keeps the connection alive
        if data.strip() == DONE_PAYLOAD:
            return b""
        try:
            value = from_json(data)
        except ValueError:
            raise broken_stream() from None
        if not isinstance(value, dict):
            raise broken_stream()
        if value.get("error"):
            return b"event: error\ndata: " + data + b"\n\n"
        return self._events(value)


def _media_type(headers: Headers) -> bytes:
    return next((value for name, value in headers if name.lower() == b"content-type"), b"")


def _decoded(body: bytes) -> Json:
    try:
        value = from_json(body)
    except ValueError:
        raise invalid_response() from None
    if not isinstance(value, dict):
        raise invalid_response()
    return value
