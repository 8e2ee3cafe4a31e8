"""`GET /v1/models` and `/v1/models/{model}`, declared with FastAPI."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic_core import from_json
from starlette.exceptions import HTTPException as StarletteHTTPException

from openai_protocol.errors import ApiError, http_error, internal_error, model_not_found
from openai_protocol.responses import model_list, model_object
from openai_proxy import __version__
from openai_proxy.dialects.openai import OpenAIDialect, invalid_response
from openai_proxy.error_forms import form_of
from openai_proxy.exchange import exchange_of
from openai_proxy.routing.retry import read
from openai_proxy.routing.router import Router
from openai_proxy.routing.upstream import Upstream
from openai_proxy.running import Running

TIMEOUT_SECONDS = 10.0
Objects = list[dict[str, Any]]


class Catalog:
    """The upstreams' models, kept for a while; owner: the application.

    Where one upstream fails, the others' are listed; where all do, the first one's error is told.
    Invariant: each upstream is asked once at a time; who comes meanwhile waits for that answer.
    """

    def __init__(
        self,
        router: Router,
        running: Running,
        cache_seconds: float,
        timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_seconds` is how long a request waits for a list at most."""
        self._router = router
        self._running = running
        self._cache_seconds = cache_seconds
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._known: Objects = []
        self._known_until = -1.0
        self._asking: asyncio.Task[None] | None = None

    async def models(self, request_id: str) -> Objects:
        """Return the model objects that clients see; raises ApiError."""
        if self._router.without_upstream:
            return []
        if self._clock() >= self._known_until:
            # As a request that runs: a reload closes no connection while it waits.
            async with self._running.leash(self._timeout_seconds):
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.create_task(self._ask_again(request_id))
                    self._asking.add_done_callback(_take_note)
                await asyncio.shield(self._asking)  # who leaves does not take it from the others
        return self._known

    async def _ask_again(self, request_id: str) -> None:
        found = await self._ask_all(request_id)
        self._known = self._router.table.listed(found)
        self._known_until = self._clock() + self._cache_seconds

    async def _ask_all(self, request_id: str) -> Mapping[str, Objects]:
        upstreams = {name: one for name, one in self._router.upstreams.items() if one is not None}
        if not upstreams:
            self._router.route(None)  # says why there is none
        answers = await asyncio.gather(
            *(self._ask(name, upstream, request_id) for name, upstream in upstreams.items()),
            return_exceptions=True,
        )
        found: dict[str, Objects] = {}
        failed: list[BaseException] = []
        for name, answer in zip(upstreams, answers, strict=True):
            if isinstance(answer, BaseException):
                failed.append(answer)
            else:
                found[name] = answer
        if failed and (not found or not isinstance(failed[0], ApiError)):
            raise failed[0]
        return found

    async def _ask(self, name: str, upstream: Upstream, request_id: str) -> Objects:
        fixed = self._router.fixed.get(name)
        if fixed is not None:
            return [model_object(model, 0, name) for model in fixed]
        return await objects_of(upstream, request_id)


def _take_note(asking: asyncio.Task[None]) -> None:
    """Take note of how it ended: nobody may be waiting any more."""
    if not asking.cancelled():
        asking.exception()


async def objects_of(upstream: Upstream, request_id: str = "") -> Objects:
    """Return an upstream's model objects, made where it lists only names; raises ApiError."""
    dialect = upstream.dialect
    head, body = await read(upstream, dialect.models_path, TIMEOUT_SECONDS, request_id)
    if head.status != 200:
        raise upstream.error(head, body)
    listed = _listed(body)
    if isinstance(dialect, OpenAIDialect):
        if listed is None:
            raise invalid_response()
        return listed
    names = dialect.models(body)
    if names is None:
        raise invalid_response()
    # Some of the others list their models in OpenAI's form, too.
    told = {item.get("id"): item for item in listed or ()}
    return [told.get(name) or model_object(name, 0, "upstream") for name in names]


def _listed(body: bytes) -> Objects | None:
    """Return the objects of OpenAI's list of models, or None where it is no such list."""
    try:
        value = from_json(body)
    except ValueError:
        return None
    data = value.get("data") if isinstance(value, dict) else None
    return [item for item in data if isinstance(item, dict)] if isinstance(data, list) else None


def build(
    router: Router, running: Running, cache_seconds: float, timeout_seconds: float
) -> FastAPI:
    """Return the application for all paths that are not hot: those declared here, else 404."""
    app = FastAPI(
        title="OpenAI proxy", version=__version__, openapi_url=None, redirect_slashes=False
    )
    for kind in (StarletteHTTPException, ApiError, Exception):
        app.add_exception_handler(kind, _refuse)
    catalog = Catalog(router, running, cache_seconds, timeout_seconds)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        """List the models."""
        exchange = exchange_of(request.scope)
        exchange.route = request.scope["route"].path
        return _json(model_list(await catalog.models(exchange.request_id)))

    @app.get("/v1/models/{model:path}")
    async def model(model: str, request: Request) -> Response:
        """Describe one of the models."""
        if not model:
            raise http_error(404, "GET", request.url.path)
        exchange = exchange_of(request.scope)
        exchange.route = request.scope["route"].path
        exchange.model = model
        router.route(model)
        for item in await catalog.models(exchange.request_id):
            if item.get("id") == model:
                return _json(item)
        raise model_not_found(model)

    return app


def _json(value: Any) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), media_type="application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer in the chosen form; what is unexpected is raised on after that, and logged."""
    if isinstance(error, ApiError):
        refusal = error
    elif isinstance(error, StarletteHTTPException):
        refusal = http_error(error.status_code, request.method, request.url.path[:256])
    else:
        refusal = internal_error()
    exchange_of(request.scope).error_code = str(refusal.code)
    form = form_of(request.scope)
    return Response(
        form.body(refusal), form.status(refusal), refusal.headers(), media_type="application/json"
    )
