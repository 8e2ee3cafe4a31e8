"""Pools of connections: each upstream's own, closed with the settings that made them."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from openai_proxy.config import load
from tests.proxy import harness
from tests.proxy.harness import StandIn, answered_json, until


async def _hang(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


async def test_an_upstream_that_hangs_starves_no_other(upstream: StandIn) -> None:
    """With all connections to one upstream in use, requests to another go on."""
    upstream.respond = _hang
    async with harness.upstream() as other:
        other.models = answered_json({"object": "list", "data": [{"id": "other"}]})
        upstreams = [{"name": "a", "url": upstream.url}, {"name": "b", "url": other.url}]
        async with harness.proxy(upstreams=upstreams, max_upstream_connections=1) as proxy:
            await until(lambda: "other" in proxy.lifecycle._state.models)
            chats = [asyncio.create_task(proxy.chat(model="tiny")) for _ in range(3)]
            await asyncio.wait_for(upstream.began.wait(), 2)
            assert (await asyncio.wait_for(proxy.chat(model="other"), 2))[0] == 200
            for chat in chats:
                chat.cancel()
            await asyncio.gather(*chats, return_exceptions=True)
    assert len(upstream.requests) == 1


class _Endless:
    """A request that goes on whatever it is told."""

    def interrupt(self, reason: Exception) -> None:
        """Go on."""


def _sessions(proxy: harness.Proxy) -> list[Any]:
    assembly = proxy.lifecycle._service.assembly
    assert assembly is not None
    return [
        session
        for connections in assembly._connections
        for session in (connections.requests, connections.side)
    ]


async def test_the_end_closes_what_still_drains(upstream: StandIn) -> None:
    """Connections of former settings are closed at the end, though a request never ended."""
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        sessions = _sessions(proxy)
        proxy.lifecycle._service.running.add(_Endless())  # type: ignore[arg-type]
        await proxy.lifecycle.reload(load({"upstream_url": upstream.url, "max_retries": 1}))
        assert not any(session.closed for session in sessions)
        sessions += _sessions(proxy)
    assert len(sessions) == 4
    assert all(session.closed for session in sessions)
