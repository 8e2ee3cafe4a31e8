"""What the running predictor answers to: nothing that changes what it serves."""

from __future__ import annotations

import httpx2
import pytest

pytestmark = pytest.mark.model


@pytest.mark.parametrize("verb", ["unload", "load", "index"])
async def test_no_page_switches_the_model_off(http: httpx2.AsyncClient, verb: str) -> None:
    """A cross-site POST to KServe's repository routes is a 404, and the model answers as before."""
    place = "index" if verb == "index" else f"models/smollm2/{verb}"
    answer = await http.post(
        f"/v2/repository/{place}",
        headers={"content-type": "text/plain", "origin": "https://evil.example"},
    )
    completion = await http.post("/v1/completions", json={"prompt": "A fox", "max_tokens": 1})

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert completion.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/openapi.json", 404),
        ("GET", "/docs", 404),
        ("GET", "/docs/oauth2-redirect", 404),
        ("GET", "/redoc", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/models/smollm2:explain", 404),
        ("POST", "/v2/models/smollm2/infer", 404),
        ("GET", "/v2/models/smollm2/versions/1", 404),
        ("GET", "/v2/models/smollm2/versions/1/ready", 404),
        ("OPTIONS", "/v1/completions", 405),
        ("HEAD", "/v1/completions", 405),
        ("DELETE", "/v1/models/smollm2", 405),
        ("TRACE", "/metrics", 405),
        ("GET", "/v2", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models", 200),
        ("GET", "/v2/models/smollm2", 200),
        ("GET", "/v2/models/smollm2/ready", 200),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
    ],
)
async def test_status(http: httpx2.AsyncClient, method: str, path: str, status: int) -> None:
    """What is listed is answered; what is not is refused in OpenAI's envelope, never redirected."""
    answer = await http.request(method, path)

    assert answer.status_code == status
    if status >= 400 and method != "HEAD":
        assert answer.json()["error"]["type"] == "invalid_request_error"
