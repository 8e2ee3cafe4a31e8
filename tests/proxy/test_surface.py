"""The proxy's paths and methods are those of these lists: a POST generates, and changes nothing."""

from __future__ import annotations

from fastapi.routing import APIRoute

from openai_proxy.api.swagger import ASSETS
from tests.proxy.harness import Proxy

POST = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/tokenize",
    "/detokenize",
    "/api/chat",
    "/api/generate",
    "/api/generate/stream",
    "/v1/api/chat",
    "/v1/api/generate",
    "/v1/api/generate/stream",
}
GET = {"/", "/health", "/health/live", "/health/ready", "/metrics", "/api/models"}
PAGES = {"/docs", "/openapi.json", "/swagger-ui", "/swagger-ui/"}
DECLARED = {"GET /v1/models", "GET /v1/models/{model:path}"}


def under_v1(paths: set[str]) -> set[str]:
    return paths | {f"/v1{path}" for path in paths if not path.startswith("/v1/")}


async def test_all_paths(proxy: Proxy) -> None:
    """The table has these paths, each with one method; all other paths are two that list models."""
    paths = proxy.lifecycle._service.paths
    assert await paths.known()
    table = {(method, path) for path, found in paths._table.items() for method in found}
    pages = PAGES | {f"/swagger-ui/{name}" for name in ASSETS}
    declared = paths._declared.routes  # type: ignore[union-attr]  # complete

    assert {path for method, path in table if method == "POST"} == POST
    assert {path for method, path in table if method == "GET"} == under_v1(GET | pages)
    assert {method for method, _ in table} == {"GET", "POST"}
    assert all(isinstance(route, APIRoute) for route in declared)
    assert {f"{method} {r.path}" for r in declared for method in r.methods} == DECLARED
