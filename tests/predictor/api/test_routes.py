"""The predictor's routes are those of these lists, whatever KServe's SDK has."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI
from kserve import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from starlette.routing import BaseRoute

from kserve_llamacpp.api.errors import add_error_handlers
from kserve_llamacpp.api.models import Models
from kserve_llamacpp.api.routes import application
from openai_protocol.request_limits import RequestLimits
from tests.predictor.fake_repository import Repository

SERVED = {
    "GET /",
    "GET /metrics",
    "GET /v1/models",
    "GET /v1/models/{model_name}",
    "POST /v1/models/{model_name}:predict",
    "POST /v1/models/{model_name}:{verb}",  # 404
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "GET /openai/v1/models",
    "GET /openai/v1/models/{model_name}",
    "POST /openai/v1/chat/completions",
    "POST /openai/v1/completions",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models",
    "GET /v2/models/{model_name}",
    "GET /v2/models/{model_name}/ready",
}
DOCS = {"GET /docs", "HEAD /docs", "GET /openapi.json", "HEAD /openapi.json"}

# What the SDK would register. Decide what is new: serve it (SERVED), or name it here.
GONE = {
    "POST /v1/models/{model_name}:explain",
    "GET /v2/models/{model_name}/versions/{model_version}",
    "GET /v2/models/{model_name}/versions/{model_version}/ready",
    "POST /v2/models/{model_name}/infer",
    "POST /v2/models/{model_name}/versions/{model_version}/infer",
    "POST /v2/repository/models/{model_name}/load",
    "POST /v2/repository/models/{model_name}/unload",
}


def _application(models: Models, has_docs: bool = False) -> FastAPI:
    app = application(models, _predict, RequestLimits(), has_docs)
    add_error_handlers(app)
    return app


async def _get(repository: Repository, path: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(_application(repository.models))
    async with httpx2.AsyncClient(transport=transport, base_url="http://m") as client:
        return await client.get(path)


async def _predict(model_name: str) -> None:
    """Answer nothing."""


def listed(routes: list[BaseRoute]) -> Iterator[str]:
    """Yield what an application answers to: mounts and websockets by their class."""
    for route in routes:
        if included := getattr(route, "original_router", None):  # what `include_router` adds
            yield from listed(included.routes)
            continue
        path = getattr(route, "path", "").replace(":name}", "}")
        for method in getattr(route, "methods", None) or [type(route).__name__]:
            yield f"{method} {path}"


def test_all_routes() -> None:
    """The application has these routes and methods, and no other: no mount, no websocket."""
    assert sorted(listed(_application(Repository().models).routes)) == sorted(SERVED)


def test_all_routes_with_docs() -> None:
    """`--enable_docs_url true` adds two pages, and no redirect for OAuth2."""
    routes = sorted(listed(_application(Repository().models, has_docs=True).routes))

    assert routes == sorted(SERVED | DOCS)


def test_every_route_of_the_sdk_is_decided() -> None:
    """What the SDK's version would register is either served by us or known to be gone."""
    repository = ModelRepository()
    app = FastAPI()
    own = set(listed(app.routes))
    RESTServer(
        "kserve.model_server:app",
        DataPlane(model_registry=repository),
        ModelRepositoryExtension(repository),
        0,
    )._register_endpoints(app)
    registered = set(listed(app.routes)) - own

    assert "GET /v2/models" in registered
    assert sorted(registered - SERVED) == sorted(GONE)


@pytest.mark.parametrize(
    ("path", "name"), [("/v2/health/ready", "ready"), ("/v2/models/m/ready", "ready")]
)
async def test_ready(path: str, name: str) -> None:
    """Readiness is 200 only while the model answers and the server does not drain."""
    repository = Repository()
    ready = await _get(repository, path)
    repository.content["m"].is_ready = False
    loading = await _get(repository, path)
    repository.content["m"].is_ready = True
    repository.is_draining = True
    draining = await _get(repository, path)

    assert (ready.status_code, ready.json()[name]) == (200, True)
    assert (loading.status_code, loading.json()["error"]["code"]) == (503, "model_not_ready")
    assert (draining.status_code, draining.json()["error"]["code"]) == (503, "server_shutting_down")


@pytest.mark.parametrize("path", ["/", "/v2/health/live"])
async def test_live(path: str) -> None:
    """Liveness is 503 only where a new process is needed: not while a model is not ready."""
    repository = Repository()
    repository.content["m"].is_ready = False
    repository.is_draining = True
    alive = await _get(repository, path)
    repository.content["m"].is_alive = False
    lost = await _get(repository, path)

    assert alive.status_code == 200
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "model_not_ready")


async def test_ready_asks_the_repository() -> None:
    """A model that has left the repository makes the server not ready, though its engine runs."""
    repository = Repository()
    repository.content.clear()

    assert (await _get(repository, "/v2/health/ready")).status_code == 503
    assert (await _get(repository, "/v2/models/m/ready")).status_code == 404


async def test_metadata_claims_no_extension() -> None:
    """The server's metadata does not offer the repository that it has not."""
    assert (await _get(Repository(), "/v2")).json()["extensions"] == []
