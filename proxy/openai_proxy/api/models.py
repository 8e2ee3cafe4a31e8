"""`GET /v1/models` and `/v1/models/{model}`, declared with FastAPI."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from http_edge import paths
from openai_protocol.errors import ApiError, http_error, internal_error, model_not_found
from openai_protocol.responses import model_list
from openai_proxy import __version__
from openai_proxy.error_forms import form_of
from openai_proxy.exchange import exchange_of
from openai_proxy.routing.model_lists import ModelLists
from openai_proxy.routing.router import Router
from openai_proxy.running import Running


def build(
    router: Router, running: Running, cache_seconds: float, timeout_seconds: float
) -> FastAPI:
    """Return the application for all paths that are not hot: those declared here, else 404."""
    app = FastAPI(
        title="OpenAI proxy", version=__version__, openapi_url=None, redirect_slashes=False
    )
    for kind in (StarletteHTTPException, ApiError, Exception):
        app.add_exception_handler(kind, _refuse)
    lists = ModelLists(router, running, cache_seconds, timeout_seconds)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        """List the models."""
        exchange = exchange_of(request.scope)
        exchange.route = request.scope["route"].path
        return _json(model_list(await lists.models(exchange.request_id)))

    @app.get("/v1/models/{model:path}")
    async def model(model: str, request: Request) -> Response:
        """Describe one of the models."""
        if not model:
            raise http_error(404, "GET", request.url.path)
        model = paths.part(model)
        exchange = exchange_of(request.scope)
        exchange.route = request.scope["route"].path
        exchange.model = model
        router.route(model)
        for item in await lists.models(exchange.request_id):
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
