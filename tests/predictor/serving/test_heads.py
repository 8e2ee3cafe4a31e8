"""A running predictor's rules for heads."""

from __future__ import annotations

import httpx2
import pytest

pytestmark = pytest.mark.model


async def test_a_foreign_host(http: httpx2.AsyncClient) -> None:
    """A server on loopback serves no page that has only pointed its own name at it."""
    refused = await http.get("/v1/models", headers={"host": "rebound.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
    assert (await http.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models/smollm2:predict"])
async def test_two_tenants(http: httpx2.AsyncClient, path: str) -> None:
    """A request of two tenants is refused on every route, and so is a length that is none."""
    two = [("x-tenant", "a"), ("x-tenant", "b")]
    refused = await http.post(path, headers=two, json={})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Tenant")
    wrong = {"inference-header-content-length": "abc"}
    refused = await http.post(path, headers=wrong, json={})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Inference-Header-Content-Length"
