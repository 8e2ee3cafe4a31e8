"""Health, readiness and metrics, under / and under /v1."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tests.proxy import harness
from tests.proxy.harness import (
    CHAT,
    DONE,
    Proxy,
    StandIn,
    answered,
    answered_json,
    chunk,
    streamed,
    until,
)

NOTHING_READY = answered_json({"object": "list", "data": [], "models": ["tiny"]})
READY = {"status": "ok", "llm_models_loaded": True}


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_healthy(proxy: Proxy, upstream: StandIn, prefix: str) -> None:
    """A ready upstream makes all three endpoints say 200, the detail in its documented form."""
    assert (await proxy.get(f"{prefix}/health/live"))[0] == 200
    assert await proxy.get(f"{prefix}/health/ready") == (200, READY)
    status, report = await proxy.get(f"{prefix}/health")
    assert status == 200
    assert report["status"] == "healthy"
    assert report["backend"] == {
        "status": "ready",
        "healthy": True,
        "models": ["tiny"],
    }


@pytest.mark.parametrize(
    "models", [NOTHING_READY, answered(503, "", "text/plain"), answered(200, "?", "text/plain")]
)
async def test_not_ready(upstream: StandIn, models: harness.Respond) -> None:
    """Without a ready model the server is alive, but neither ready nor healthy."""
    upstream.models = models
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        assert (await proxy.get("/health/live"))[0] == 200
        assert await proxy.get("/health/ready") == (
            503,
            {"status": "not_ready", "llm_models_loaded": False},
        )
        status, report = await proxy.get("/health")
        assert (status, report["status"]) == (503, "unhealthy")
        assert report["backend"]["status"] == "not_ready"
        assert report["backend"]["reason"]


async def test_without_upstream() -> None:
    """A proxy that is to run alone is healthy, lists no model and refuses to chat with 503."""
    async with harness.proxy(without_upstream=True) as proxy:
        assert await proxy.get("/health/ready") == (200, READY)
        status, report = await proxy.get("/health")
        assert (status, report["status"]) == (200, "healthy")
        assert report["backend"]["models"] == []
        assert await proxy.get("/v1/models") == (200, {"object": "list", "data": []})
        status, refusal = await proxy.chat()
        assert (status, refusal["error"]["code"]) == (503, "model_not_ready")


async def test_readiness_follows_the_upstream(proxy: Proxy, upstream: StandIn) -> None:
    """Readiness goes and comes back with the upstream's model."""
    ready = upstream.models
    upstream.models = NOTHING_READY
    await until(lambda: has_status(proxy, 503))
    upstream.models = ready
    await until(lambda: has_status(proxy, 200))


async def has_status(proxy: Proxy, status: int) -> bool:
    """Whether readiness has this status."""
    return (await proxy.get("/health/ready"))[0] == status


async def test_an_upstream_without_a_list_of_models_is_ready(upstream: StandIn) -> None:
    """A server that has no list of models is ready as long as it answers."""
    upstream.models = answered(404, "", "text/plain")
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        await until(lambda: has_status(proxy, 200))


async def test_an_upstream_that_is_never_looked_at_is_ready(upstream: StandIn) -> None:
    """With an interval of 0 an upstream that sleeps is left asleep, and requests go to it."""
    looks: list[web.Request] = []

    async def look(request: web.Request) -> web.StreamResponse:
        looks.append(request)
        return web.Response(status=503)

    upstream.models = look
    async with harness.proxy(upstream_url=upstream.url, probe_interval_seconds=0) as proxy:
        assert await has_status(proxy, 200)
        assert (await proxy.chat())[0] == 200
    assert looks == []


async def test_probes_do_not_queue_behind_requests(upstream: StandIn) -> None:
    """With every connection in use, the server stays ready and lists models."""

    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        return web.Response()

    upstream.respond = hang
    async with harness.proxy(upstream_url=upstream.url, max_upstream_connections=1) as proxy:
        chats = [asyncio.create_task(proxy.chat()) for _ in range(3)]
        await asyncio.wait_for(upstream.began.wait(), 2)
        assert (await proxy.get("/v1/models"))[0] == 200
        assert (await proxy.lifecycle._state.probes["default"].look()).is_ready  # type: ignore[union-attr]
        for chat in chats:
            chat.cancel()
        await asyncio.gather(*chats, return_exceptions=True)


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
async def test_metrics(proxy: Proxy, upstream: StandIn, path: str) -> None:
    """Requests are counted by path, status and model; streams have a time to first token."""
    await proxy.chat()
    await proxy.chat(model="unknown")
    upstream.respond = streamed(chunk("a"), DONE)
    await proxy.stream()
    upstream.respond = answered(500, "", "text/plain")
    await proxy.chat()
    await until(lambda: len(proxy.lifecycle._running) == 0)
    async with proxy.http.get(proxy.url + path) as response:
        assert response.headers["content-type"].startswith("text/plain")
        lines = (await response.text()).splitlines()
    common = 'path="/v1/chat/completions"'
    assert f'openai_proxy_requests_total{{model="tiny",{common},status="200"}} 2.0' in lines
    assert f'openai_proxy_requests_total{{model="tiny",{common},status="502"}} 1.0' in lines
    assert f'openai_proxy_requests_total{{model="other",{common},status="200"}} 1.0' in lines
    assert f'openai_proxy_time_to_first_token_seconds_count{{model="tiny",{common}}} 1.0' in lines
    assert 'openai_proxy_upstream_errors_total{code="upstream_error"} 1.0' in lines
    assert "openai_proxy_requests_in_flight 1.0" in lines  # this one
    assert "openai_proxy_ready 1.0" in lines


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/health", "/health/live", "/health/ready", "/v1/health", "/metrics"),
        *("/docs", "/swagger-ui", "/swagger-ui/", "/openapi.json", "/api/models"),
        *("/v1/models", "/v1/models/tiny", "/v1/models/other", "/nowhere", CHAT),
    ],
)
async def test_head(proxy: Proxy, path: str) -> None:
    """HEAD is answered as GET, without a body."""
    answers = []
    for method in ("GET", "HEAD"):
        url = proxy.url + path
        async with proxy.http.request(method, url, allow_redirects=False) as response:
            has_body = bool(await response.read())
            answers.append((response.status, response.headers.get("content-type")))
    assert answers[0] == answers[1]
    assert not has_body
