"""How the application answers an error: OpenAI's envelope, whatever raised it."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from kserve import errors
from starlette.exceptions import HTTPException

from openai_protocol.errors import (
    ApiError,
    ErrorCode,
    InvalidRequest,
    Unavailable,
    http_error,
    internal_error,
    model_not_found,
)


def add_error_handlers(app: FastAPI) -> None:
    """Put our envelope in the place of KServe's error bodies."""

    async def render(error: ApiError) -> Response:
        return Response(error.body(), error.status, error.headers(), media_type="application/json")

    async def own(_: Request, error: Any) -> Response:
        return await render(error)

    async def not_found(request: Request, error: Any) -> Response:
        return await render(model_not_found(request.path_params.get("model_name", "")))

    async def invalid(_: Request, error: Any) -> Response:
        text = getattr(error, "reason", None) or "The request is not valid."
        is_json = "JSON" in str(text) or "Unrecognized request format" in str(text)
        code = ErrorCode.INVALID_JSON if is_json else ErrorCode.INVALID_VALUE
        return await render(InvalidRequest(str(text)[:512], code=code))

    async def not_ready(_: Request, error: Any) -> Response:
        return await render(Unavailable("The model is not ready.", retry_after_seconds=1.0))

    async def http(request: Request, error: Any) -> Response:
        if isinstance(error.__cause__, ApiError):  # FastAPI's own, about a body it could not read
            return await render(error.__cause__)
        return await render(http_error(error.status_code, request.method, request.url.path[:256]))

    async def failed(_: Request, error: Any) -> Response:
        structlog.get_logger("server").error("request_failed", exc_info=error)
        return await render(internal_error())

    async def not_served(request: Request, error: Any) -> Response:
        return await render(http_error(404, request.method, request.url.path[:256]))

    app.add_exception_handler(ApiError, own)
    app.add_exception_handler(NotImplementedError, not_served)
    app.add_exception_handler(errors.ModelNotFound, not_found)
    app.add_exception_handler(errors.ModelNotReady, not_ready)
    app.add_exception_handler(errors.ServerNotReady, not_ready)
    app.add_exception_handler(errors.InvalidInput, invalid)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(errors.InferenceError, failed)
    app.add_exception_handler(Exception, failed)
