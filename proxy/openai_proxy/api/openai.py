"""`POST /v1/chat/completions` and `/v1/completions`: validate, route, attempt, answer.

Plain ASGI, since these are the hot paths: no framework, and no JSON parsed per chunk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from openai_protocol.errors import ApiError
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_protocol.resume import FIELD, without_resume
from openai_protocol.sse import MEDIA_TYPE, event
from openai_protocol.validation import parse_request
from openai_proxy.dialects.base import CHAT, COMPLETIONS, Call, Dialect, Headers
from openai_proxy.dialects.openai import invalid_response
from openai_proxy.exchange import Exchange, exchange_of
from openai_proxy.middleware import Receive, Scope, Send, read_body, send_json
from openai_proxy.routing.endpoints import Endpoint
from openai_proxy.routing.retry import with_one_retry
from openai_proxy.routing.router import Router
from openai_proxy.routing.upstream import Answer, Upstream
from openai_proxy.running import Leash, Running

LAST_WORDS_SECONDS = 2.0
_ID_PREFIX = {CHAT: "chatcmpl", COMPLETIONS: "cmpl"}
_STREAM_HEAD = [
    (b"content-type", MEDIA_TYPE.encode() + b"; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
]


class GenerationEndpoint:
    """One generating endpoint; `path` as clients see it."""

    def __init__(
        self,
        path: str,
        request_model: type[ChatCompletionRequest] | type[CompletionRequest],
        router: Router,
        running: Running,
        request_timeout_seconds: float,
        on_upstream_error: Callable[[str], None] = lambda _: None,
        on_retry: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._request_model = request_model
        self._router = router
        self._running = running
        self._request_timeout_seconds = request_timeout_seconds
        self._on_upstream_error = on_upstream_error
        self._on_retry = on_retry
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; an error after a stream has begun becomes its last event."""
        exchange = exchange_of(scope)
        try:
            async with self._running.leash(self._request_timeout_seconds) as leash:
                body = await read_body(receive)
                leash.watch(receive)
                asked = parse_request(self._request_model, body)
                if FIELD in (asked.model_extra or {}):
                    body = without_resume(body)
                exchange.model = asked.model
                exchange.is_stream = bool(asked.stream)
                upstream = self._router.route(asked.model)
                call = Call(
                    path=self._path,
                    body=body,
                    asked=asked,
                    headers=_headers(scope),
                    model=asked.model,
                    upstream_model=asked.model,
                    answer_id=f"{_ID_PREFIX[self._path]}-{exchange.request_id}",
                    created=int(self._clock()),
                )
                await self._answer(upstream, call, exchange, leash, send)
        except ApiError as error:
            exchange.error_code = str(error.code)
            if exchange.status is None or not exchange.is_stream:
                raise
            await _end_stream(send, error)

    async def _answer(
        self,
        upstream: Upstream,
        call: Call,
        exchange: Exchange,
        leash: Leash,
        send: Send,
    ) -> None:
        request = upstream.dialect.request(call)

        async def attempt(endpoint: Endpoint) -> None:
            async with upstream.post(endpoint, request, exchange.request_id) as answer:
                if answer.head.status != 200:
                    raise upstream.dialect.error(answer.head, await _error_body(answer))
                if exchange.is_stream:
                    await _stream(answer, upstream.dialect, call, leash, send)
                else:
                    await _whole(answer, upstream.dialect, call, send)

        def has_sent_nothing() -> bool:
            return exchange.status is None

        try:
            await with_one_retry(upstream, attempt, has_sent_nothing, self._on_retry)
        except ApiError as error:
            if error.status >= 500:
                self._on_upstream_error(str(error.code))
            raise


async def _error_body(answer: Answer) -> bytes:
    try:
        return await answer.body()
    except ApiError:
        return b""  # the status says enough


async def _whole(answer: Answer, dialect: Dialect, call: Call, send: Send) -> None:
    if answer.head.media_type == MEDIA_TYPE or answer.head.encoding not in _PLAIN:
        raise invalid_response()
    await send_json(send, 200, dialect.answer(call, answer.head, await answer.body()))


async def _stream(answer: Answer, dialect: Dialect, call: Call, leash: Leash, send: Send) -> None:
    """Pass events on as they come; the head waits for the first, so that errors keep a status."""
    if answer.head.media_type not in dialect.stream_types or answer.head.encoding not in _PLAIN:
        raise invalid_response()
    parser = dialect.stream(call)
    has_started = False

    async def pass_on(events: bytes) -> None:
        nonlocal has_started
        if not events:
            return
        if not has_started:
            has_started = True
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEAD})
        await send({"type": "http.response.body", "body": events, "more_body": True})

    while not parser.is_complete and (chunk := await answer.chunk()):
        await pass_on(parser.feed(chunk))
    await pass_on(parser.finish())
    leash.unwatch()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    await answer.finish()


_PLAIN = frozenset({"", "identity"})


async def _end_stream(send: Send, error: ApiError) -> None:
    """Tell a stream's client why it ends; a client that does not read is not waited for."""
    try:
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            last = event(error.body())
            await send({"type": "http.response.body", "body": last, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        pass


def _headers(scope: Scope) -> Headers:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    return [pair for pair in pairs if pair[1].isprintable()]
