"""`POST /v1/chat/completions` and `/v1/completions`: validate, route, attempt, answer.

Plain ASGI, since these are the hot paths: no framework, and no JSON parsed per chunk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic_core import from_json

from http_edge.bytes_in_flight import COST_PER_REQUEST, Lease, lease_of
from openai_protocol.errors import ApiError
from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_protocol.resume import FIELD, without_resume
from openai_protocol.sse import MEDIA_TYPE
from openai_protocol.validation import check_request
from openai_proxy.api.long_work import LongWork
from openai_proxy.dialects.base import (
    CHAT,
    COMPLETIONS,
    Call,
    Dialect,
    Headers,
    NotRendered,
    UpstreamRequest,
)
from openai_proxy.dialects.openai import invalid_response
from openai_proxy.error_forms import form_of
from openai_proxy.event_stream import EventStream
from openai_proxy.exchange import Exchange, exchange_of
from openai_proxy.middleware import Receive, Scope, Send, let_go, read_body, send_json
from openai_proxy.routing.endpoints import Endpoint
from openai_proxy.routing.models import changes
from openai_proxy.routing.restart_wait import RestartWait
from openai_proxy.routing.retry import Refused, RetryPolicy, with_retries
from openai_proxy.routing.router import Route
from openai_proxy.routing.upstream import Answer, Upstream
from openai_proxy.running import Leash, Running

Asked = ChatCompletionRequest | CompletionRequest
Result = TypeVar("Result")
_ID_PREFIX = {CHAT: "chatcmpl", COMPLETIONS: "cmpl"}
_PLAIN = frozenset({"", "identity"})
_LONG_BODY_BYTES = 64 * 1024
_LONG_ANSWER_BYTES = 1024 * 1024
_COST_PER_SENT_BYTE = 2  # once held, and once on its way


@dataclass(frozen=True, slots=True)
class Serving:
    """How generating requests are served; times in seconds."""

    timeout_seconds: float
    limits: RequestLimits = field(default_factory=RequestLimits)
    keepalive_seconds: float = 0.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    on_upstream_error: Callable[[str], None] = lambda _: None
    on_retry: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.time
    long_answers: LongWork = field(default_factory=LongWork)


class GenerationEndpoint:
    """One generating endpoint; `path` as clients see it."""

    def __init__(
        self,
        path: str,
        request_model: type[ChatCompletionRequest] | type[CompletionRequest],
        upstreams: RestartWait,
        running: Running,
        serving: Serving,
    ) -> None:
        self._path = path
        self._request_model = request_model
        self._upstreams = upstreams
        self._running = running
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; an error after a stream has begun becomes its last event."""
        exchange = exchange_of(scope)
        serving = self._serving
        stream: EventStream | None = None
        try:
            async with self._running.leash(serving.timeout_seconds) as leash:
                body = await read_body(receive)
                leash.watch(scope, receive)
                asked = serving.limits.parse(self._request_model, body)
                if FIELD in (asked.model_extra or {}):
                    body = without_resume(body)
                exchange.model = asked.model
                exchange.is_stream = bool(asked.stream)
                num_bytes = len(body)
                route = self._upstreams.found(asked.model)
                if route is None:
                    route = await self._upstreams.route(asked.model, num_bytes)
                held = Held(self._call(asked, body, route, scope), lease_of(scope))
                del asked, body

                def has_sent_nothing() -> bool:
                    return exchange.status is None

                async def attempt(upstream: Upstream) -> None:
                    nonlocal stream
                    if not exchange.is_stream:
                        whole = _Whole(send, lease_of(scope), serving.long_answers)
                        await ask(upstream, held, exchange, serving, whole, has_sent_nothing)
                        return
                    stream = EventStream(send, serving.keepalive_seconds)
                    async with stream:
                        events = _Streamed(stream, leash, held)
                        await ask(upstream, held, exchange, serving, events, has_sent_nothing)

                if self._upstreams.has_backend:
                    await self._upstreams.run(route, num_bytes, attempt, has_sent_nothing)
                else:
                    await attempt(route.upstream)
        except ApiError as error:
            exchange.error_code = str(error.code)
            if stream is None or not stream.has_begun:
                raise
            await stream.fail(form_of(scope).body(error))
            let_go(error)

    def _call(self, asked: Asked, body: bytes, route: Route, scope: Scope) -> Call:
        """Return the call for an upstream: the body is written anew only where it must change."""
        changed = changes(asked, route.resolved)
        if changed:
            body, asked = _rewritten(type(asked), body, changed)
        return Call(
            path=self._path,
            body=body,
            asked=asked,
            headers=request_headers(scope),
            model=route.resolved.name,
            upstream_model=route.resolved.upstream_model,
            answer_id=f"{_ID_PREFIX[self._path]}-{exchange_of(scope).request_id}",
            created=int(self._serving.clock()),
        )


class Held:
    """What is held of a request while it may be sent again; owner: its endpoint.

    Nobody else keeps the call or what is sent of it: they may be many megabytes, and a stream may
    last for an hour.
    """

    __slots__ = ("_is_long", "_lease", "call", "for_answer", "headers", "request")

    def __init__(self, call: Call, lease: Lease | None = None) -> None:
        self._lease = lease
        self.call: Call | None = call
        self.headers = call.headers
        self.request: UpstreamRequest | None = None
        self._is_long = len(call.body) > _LONG_BODY_BYTES
        self.for_answer = call.without_prompt() if self._is_long else call

    def translated(self, request: UpstreamRequest) -> None:
        """Hold what is sent, and no longer what it was made of: it is sent again as it is."""
        self.request = request
        if not self._is_long:
            return
        self.call = None
        if self._lease is not None:
            self._lease.shrink(COST_PER_REQUEST + _COST_PER_SENT_BYTE * len(request.body))

    def let_go(self) -> None:
        """Let go of the request: its answer has begun, so that it is not sent again."""
        if not self._is_long:
            return
        self.call = self.request = None
        if self._lease is not None:
            self._lease.shrink(COST_PER_REQUEST)


async def ask(
    upstream: Upstream,
    held: Held,
    exchange: Exchange,
    serving: Serving,
    answering: Callable[[Answer, Dialect, Call], Awaitable[Result]],
    can_retry: Callable[[], bool] = lambda: True,
) -> Result:
    """Send what is held, again where that may help; return what `answering` makes of the answer.

    Raises ApiError.
    """
    if held.request is None:  # else it was sent to the same backend before that restarted
        assert held.call is not None
        try:
            held.translated(upstream.dialect.request(held.call))
        except NotRendered:
            held.call = await upstream.rendered(held.call)
            held.translated(upstream.dialect.request(held.call))

    async def attempt(endpoint: Endpoint) -> Result:
        assert held.request is not None
        with exchange.attempt(upstream.target, endpoint.host) as told:
            async with upstream.post(
                endpoint, held.request, exchange.request_id, held.headers, told.headers
            ) as answer:
                told.status = answer.head.status
                if answer.head.status != 200:
                    error = upstream.error(answer.head, await _error_body(answer))
                    raise Refused(answer.head.status, error)
                return await answering(answer, upstream.dialect, held.for_answer)

    try:
        return await with_retries(upstream, attempt, serving.retries, can_retry, serving.on_retry)
    except ApiError as error:
        if error.status >= 500:
            serving.on_upstream_error(str(error.code))
        raise


class _Whole:
    """Passes a whole answer on; it counts for the request's lease.

    To read one of 30 MB takes a tenth of a second or two: `long` does that one after another.
    """

    def __init__(self, send: Send, lease: Lease | None, long: LongWork) -> None:
        self._send = send
        self._lease = lease
        self._long = long

    async def __call__(self, answer: Answer, dialect: Dialect, call: Call) -> None:
        if answer.head.media_type == MEDIA_TYPE or answer.head.encoding not in _PLAIN:
            raise invalid_response()
        body = await answer.body(self._lease)
        if len(body) > _LONG_ANSWER_BYTES:
            body = await self._long.run(partial(dialect.answer, call, answer.head, body))
        else:
            body = dialect.answer(call, answer.head, body)
        await send_json(self._send, 200, body)


class _Streamed:
    """Passes events on as they come."""

    def __init__(self, stream: EventStream, leash: Leash, held: Held) -> None:
        self._stream = stream
        self._leash = leash
        self._held = held

    async def __call__(self, answer: Answer, dialect: Dialect, call: Call) -> None:
        if answer.head.media_type not in dialect.stream_types or answer.head.encoding not in _PLAIN:
            raise invalid_response()
        parser = dialect.stream(call)
        is_held = True
        while not parser.is_complete and (chunk := await answer.chunk()):
            await self._stream.write(parser.feed(chunk))
            if is_held and self._stream.has_begun:
                is_held = False
                self._held.let_go()
        await self._stream.write(parser.finish())
        self._leash.unwatch()
        await self._stream.end()
        await answer.finish()


async def _error_body(answer: Answer) -> bytes:
    """Return the body of an answer with an error status, or nothing where it breaks off."""
    try:
        return await answer.body()
    except ApiError:
        return b""  # the status says enough


def _rewritten(kind: type[Asked], body: bytes, changed: dict[str, Any]) -> tuple[bytes, Asked]:
    """Return a request with other fields; None takes one out. Raises InvalidRequest."""
    value = from_json(body)
    for name, field_value in changed.items():
        if field_value is None:
            value.pop(name, None)
        else:
            value[name] = field_value
    return json.dumps(value, ensure_ascii=False).encode(), check_request(kind, value)


def request_headers(scope: Scope) -> Headers:
    """Return a request's headers as text; those that are none are left out."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    return [pair for pair in pairs if pair[1].isprintable()]
