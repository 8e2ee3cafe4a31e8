"""Lists of models: an upstream is asked once at a time, on connections that starve nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from openai_protocol.errors import ApiError, BadGateway
from openai_proxy.config import load
from openai_proxy.routing import model_lists
from openai_proxy.routing.model_lists import ModelLists
from openai_proxy.routing.router import Router
from openai_proxy.routing.upstream import Upstream
from openai_proxy.running import Running
from tests.proxy import harness
from tests.proxy.harness import StandIn, answered_json, until


class Hanging:
    """Answers probes at once, and lists for clients when it is let go; counts the latter."""

    def __init__(self, standin: StandIn) -> None:
        self.num_asked = 0
        self.go_on = asyncio.Event()
        self._list = standin.models

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if "x-request-id" in request.headers:  # no probe
            self.num_asked += 1
            await self.go_on.wait()
        return await self._list(request)


@pytest.fixture
async def hanging(upstream: StandIn) -> AsyncIterator[Hanging]:
    upstream.models = made = Hanging(upstream)
    yield made
    made.go_on.set()


async def test_many_clients_make_one_question(upstream: StandIn, hanging: Hanging) -> None:
    """Who asks while the upstream is being asked gets the same answer."""
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        lists = [asyncio.create_task(proxy.get("/v1/models")) for _ in range(40)]
        await until(lambda: len(proxy.lifecycle._running) == 40 and hanging.num_asked > 0)
        assert (await proxy.lifecycle._state.probes["default"].look()).is_ready  # type: ignore[union-attr]
        hanging.go_on.set()
        assert {status for status, _ in await asyncio.gather(*lists)} == {200}
        assert hanging.num_asked == 1


async def test_a_client_that_leaves_takes_nothing_from_others(
    upstream: StandIn, hanging: Hanging
) -> None:
    """The answer comes also when the first one who asked has gone."""
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        first = asyncio.create_task(proxy.get("/v1/models"))
        await until(lambda: hanging.num_asked == 1)
        second = asyncio.create_task(proxy.get("/v1/models"))
        await until(lambda: len(proxy.lifecycle._running) == 2)
        first.cancel()
        hanging.go_on.set()
        assert (await second)[0] == 200
        assert hanging.num_asked == 1


async def test_a_reload_leaves_lists_that_are_asked_for(
    upstream: StandIn, hanging: Hanging
) -> None:
    """A list that is on its way when other settings come is answered as any request."""
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        asked = asyncio.create_task(proxy.get("/v1/models"))
        await until(lambda: hanging.num_asked == 1)
        await proxy.lifecycle.reload(load({"upstream_url": upstream.url, "max_retries": 1}))
        await asyncio.sleep(0.1)  # the old connections would be closed by now
        hanging.go_on.set()
        status, body = await asked
    assert (status, [item["id"] for item in body["data"]]) == (200, ["tiny"])


async def test_a_list_has_a_deadline(upstream: StandIn, hanging: Hanging) -> None:
    """Who waits for a list waits no longer than for anything else."""
    settings = {"upstream_url": upstream.url, "request_timeout_seconds": 0.2}
    async with harness.proxy(**settings) as proxy:
        status, body = await proxy.get("/v1/models")
    assert status == 504
    assert body["error"]["message"] == "The request took longer than 0.2 seconds."


async def _ids(proxy: harness.Proxy) -> set[str]:
    status, body = await proxy.get("/v1/models")
    assert status == 200
    return {item["id"] for item in body["data"]}


async def test_a_slow_upstream_holds_up_no_list(
    upstream: StandIn, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is slow is waited for a while, and once; it is listed when it has answered."""
    monkeypatch.setattr(model_lists, "PATIENCE_SECONDS", 0.1)
    async with harness.upstream() as other:
        other.models = answered_json({"object": "list", "data": [{"id": "other"}]})
        upstreams = [{"name": "a", "url": upstream.url}, {"name": "b", "url": other.url}]
        async with harness.proxy(upstreams=upstreams, models_cache_seconds=0) as proxy:
            assert await _ids(proxy) == {"other"}
            assert await _ids(proxy) == {"other"}
            assert hanging.num_asked == 1
            hanging.go_on.set()
            await until(lambda: _has(proxy, {"tiny", "other"}))
            hanging.go_on.clear()
            assert await _ids(proxy) == {"tiny", "other"}  # what it had last


async def _has(proxy: harness.Proxy, names: set[str]) -> bool:
    return await _ids(proxy) == names


async def test_a_failure_is_each_ones_and_is_not_kept() -> None:
    """All who wait are told of a failure; the next one asks again."""
    num_asked = 0

    class Failing(ModelLists):
        async def _objects(
            self, name: str, upstream: Upstream, request_id: str
        ) -> list[dict[str, object]]:
            nonlocal num_asked
            num_asked += 1
            await asyncio.sleep(0)
            raise BadGateway("gone")

    router = Router()
    router.use(object())  # type: ignore[arg-type]  # which is never asked
    lists = Failing(router, Running(), 2, 600)
    asked = [asyncio.create_task(lists.models("r")) for _ in range(3)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(error, ApiError) for error in found)
    assert num_asked == 1
    with pytest.raises(BadGateway):
        await lists.models("r")
    assert num_asked == 2
