"""`GET /v1/models` and `/v1/models/{model}`, declared with FastAPI."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic_core import from_json
from starlette.exceptions import HTTPException as StarletteHTTPException

from openai_protocol.errors import (
    ApiError,
    http_error,
    internal_error,
    model_not_found,
)
from openai_protocol.responses import model_list
from openai_proxy import __version__
from openai_proxy.dialects.openai import invalid_response
from openai_proxy.exchange import exchange_of
from openai_proxy.routing.retry import read
from openai_proxy.routing.router import Router
from openai_proxy.routing.upstream import Upstream

TIMEOUT_SECONDS = 10.0


def build(router: Router) -> FastAPI:
    """Return the application for all paths that are not hot: those declared here, else 404."""
    app = FastAPI(
        title="OpenAI proxy", version=__version__, openapi_url=None, redirect_slashes=False
    )
    for kind in (StarletteHTTPException, ApiError, Exception):
        app.add_exception_handler(kind, _refuse)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        """List the upstream's models."""
        if router.without_upstream:
            return _json(model_list([]))
        value = await _ask(router.route(None), "/models", request)
        data = value.get("data")
        if not isinstance(data, list):
            raise invalid_response()
        return _json(model_list([item for item in data if isinstance(item, dict)]))

    @app.get("/v1/models/{model:path}")
    async def model(model: str, request: Request) -> Response:
        """Describe one of the upstream's models."""
        if not model:
            raise http_error(404, "GET", request.url.path)
        exchange_of(request.scope).model = model
        value = await _ask(router.route(model), f"/models/{quote(model)}", request, model)
        return _json(value)

    return app


async def _ask(
    upstream: Upstream, path: str, request: Request, model: str | None = None
) -> dict[str, Any]:
    exchange = exchange_of(request.scope)
    exchange.route = request.scope["route"].path
    head, body = await read(upstream, path, TIMEOUT_SECONDS, exchange.request_id)
    if head.status == 404 and model is not None:
        raise model_not_found(model)
    if head.status != 200:
        raise upstream.dialect.error(head, body)
    try:
        value = from_json(body)
    except ValueError:
        raise invalid_response() from None
    if not isinstance(value, dict):
        raise invalid_response()
    return value


def _json(value: Any) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), media_type="application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer in OpenAI's envelope; what is unexpected is raised on after that, and logged."""
    if isinstance(error, ApiError):
        refusal = error
    elif isinstance(error, StarletteHTTPException):
        refusal = http_error(error.status_code, request.method, request.url.path[:256])
    else:
        refusal = internal_error()
    exchange_of(request.scope).error_code = str(refusal.code)
    return Response(
        refusal.body(), refusal.status, refusal.headers(), media_type="application/json"
    )
