"""Every route of the application: what is not listed here is 404.

The application is ours and not KServe's, which registers whatever its version has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from kserve_llamacpp import __version__
from kserve_llamacpp.api.json_bounds import JSONBounds
from kserve_llamacpp.api.models import Models
from kserve_llamacpp.api.openai import GENERATING, add_openai_routes
from kserve_llamacpp.api.path_names import NAME
from kserve_llamacpp.api.v2 import V2Routes
from kserve_llamacpp.metrics import exposition
from openai_protocol.errors import http_error
from openai_protocol.request_limits import RequestLimits

Predict = Callable[..., Awaitable[Any]]


def application(models: Models, predict: Predict, limits: RequestLimits, has_docs: bool) -> FastAPI:
    """Return the application with all of its routes.

    `predict` is KServe's endpoint for V1, of the arguments `model_name` and `request`. `limits`
    bound every body that a route reads. Only with `has_docs` there are `/docs` and
    `/openapi.json`.
    """
    app = FastAPI(
        title="kserve-llamacpp",
        version=__version__,
        openapi_url="/openapi.json" if has_docs else None,
        docs_url="/docs" if has_docs else None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,  # a redirect's target would be made of the client's Host
    )
    add_openai_routes(app, models, limits)
    app.add_middleware(JSONBounds, limits=limits, has_own=GENERATING)
    app.add_api_route(f"/v1/models/{NAME}:predict", predict, methods=["POST"], response_model=None)
    app.add_api_route(
        f"/v1/models/{NAME}:{{verb}}", _no_verb, methods=["POST"], response_model=None
    )
    v2 = V2Routes(models)
    for path, endpoint in (
        ("/", v2.alive),
        ("/metrics", _metrics),
        ("/v2", v2.metadata),
        ("/v2/health/live", v2.live),
        ("/v2/health/ready", v2.ready),
        ("/v2/models", v2.list_models),
        (f"/v2/models/{NAME}", v2.model_metadata),
        (f"/v2/models/{NAME}/ready", v2.model_ready),
    ):
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    return app


async def _no_verb(request: Request) -> None:
    """Refuse `:explain` and all else: the path is unknown, and not one for GET alone."""
    raise http_error(404, request.method, request.url.path[:256])


async def _metrics(request: Request) -> Response:
    """Answer all metrics, in the format that the scraper accepts."""
    body, content_type = exposition(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
