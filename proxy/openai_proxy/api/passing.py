"""Endpoints that pass to upstreams which have them: embeddings, rerank, tokenize, detokenize."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from http_edge.bytes_in_flight import lease_of
from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_proxy.api.openai import Held, Serving, ask, request_headers
from openai_proxy.dialects.base import Call, Dialect
from openai_proxy.exchange import exchange_of
from openai_proxy.middleware import Receive, Scope, Send, read_body, send_json
from openai_proxy.routing.restart_wait import RestartWait
from openai_proxy.routing.router import Route
from openai_proxy.routing.upstream import Answer, Upstream
from openai_proxy.running import Running

MAX_INPUTS = 2048
MAX_DOCUMENTS = 4096


class PassedRequest(BaseModel):
    """What the proxy looks at of a request that it only passes; all else is the upstream's."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = Field(None, min_length=1, max_length=256)


class EmbeddingsRequest(PassedRequest):
    """The body of `POST /v1/embeddings`."""

    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | Annotated[list[int], Field(min_length=1, fail_fast=True)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    )


class RerankRequest(PassedRequest):
    """The body of `POST /v1/rerank`, as Jina, Cohere, vLLM and llama-server have it."""

    query: str
    documents: Annotated[
        list[str | dict[str, Any]],
        Field(min_length=1, max_length=MAX_DOCUMENTS, fail_fast=True),
    ]


PASSED: Mapping[str, type[PassedRequest]] = {
    "/v1/embeddings": EmbeddingsRequest,
    "/v1/rerank": RerankRequest,
    "/rerank": RerankRequest,
    "/tokenize": PassedRequest,
    "/detokenize": PassedRequest,
}


class PassingEndpoint:
    """One endpoint whose requests and answers pass as they are, but for the model's name."""

    def __init__(
        self,
        path: str,
        request_model: type[PassedRequest],
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
        """Serve one request."""
        exchange = exchange_of(scope)
        async with self._running.leash(self._serving.timeout_seconds) as leash:
            body = await read_body(receive)
            leash.watch(scope, receive)
            asked = self._serving.limits.parse(self._request_model, body)
            exchange.model = asked.model
            lease = lease_of(scope)

            async def passed(answer: Answer, dialect: Dialect, call: Call) -> bytes:
                return dialect.answer(call, answer.head, await answer.body(lease))

            num_bytes = len(body)
            route = await self._upstreams.route(asked.model, num_bytes)
            held = Held(self._call(asked, body, route, scope), lease)
            del asked, body

            async def attempt(upstream: Upstream) -> bytes:
                return await ask(upstream, held, exchange, self._serving, passed)

            answered = await self._upstreams.run(route, num_bytes, attempt)
            leash.unwatch()
            await send_json(send, 200, answered)

    def _call(self, asked: PassedRequest, body: bytes, route: Route, scope: Scope) -> Call:
        if self._path not in route.upstream.dialect.endpoints:
            raise InvalidRequest(
                f"The upstream of this model has no {self._path}.",
                param="model",
                code=ErrorCode.UNSUPPORTED_VALUE,
            )
        resolved = route.resolved
        if resolved.upstream_model != asked.model:
            value = from_json(body) | {"model": resolved.upstream_model}
            body = json.dumps(value, ensure_ascii=False).encode()
        return Call(
            path=self._path,
            body=body,
            headers=request_headers(scope),
            model=resolved.name,
            upstream_model=resolved.upstream_model,
        )
