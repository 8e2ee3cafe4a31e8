"""One more attempt before the first byte, on real sockets: two pods behind one name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from openai_proxy.routing import endpoints as routing
from openai_proxy.server import listen
from tests.proxy.harness import (
    CHAT,
    DONE,
    MESSAGES,
    Proxy,
    StandIn,
    chunk,
    proxy,
    start_stream,
    streamed,
    until,
    upstream,
)


class Pods:
    """Stand-ins on 127.0.0.1, .2, ... with one port, as a headless Service shows its pods."""

    def __init__(self) -> None:
        self.stack = AsyncExitStack()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.listed: list[str] = []

    async def start(self, host: str) -> StandIn:
        """Start a pod at this address, and list it."""
        standin = await self.stack.enter_async_context(upstream(listen(host, self.port)))
        self.listed.append(host)
        return standin

    async def look_up(self, _: str, __: int) -> tuple[str, ...]:
        return tuple(self.listed)


@pytest.fixture
async def pods(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pods]:
    pods = Pods()
    monkeypatch.setattr("openai_proxy.assembly.look_up", pods.look_up)
    monkeypatch.setattr(routing, "LOOKUP_SECONDS", 0.05)
    async with pods.stack:
        yield pods


@pytest.fixture
async def in_front(pods: Pods) -> AsyncIterator[Proxy]:
    async with proxy(upstream_url=f"http://pods:{pods.port}") as running:
        yield running


async def reset(request: web.Request) -> web.StreamResponse:
    """Reset the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def broken_before_first_event(request: web.Request) -> web.StreamResponse:
    """Die after the head of a stream, as a pod that is killed during prefill."""
    response = await start_stream(request)
    assert request.transport is not None
    request.transport.abort()
    return response


async def retries(running: Proxy) -> float:
    async with running.http.get(running.url + "/metrics") as response:
        text = await response.text()
    line = next(
        line for line in text.splitlines() if line.startswith("openai_proxy_upstream_retries_total")
    )
    return float(line.split()[1])


async def test_both_pods_are_used(pods: Pods, in_front: Proxy) -> None:
    """Requests are spread over the addresses of the name."""
    first, second = await pods.start("127.0.0.1"), await pods.start("127.0.0.2")
    await until(lambda: _is_reached(in_front, first))
    await until(lambda: _is_reached(in_front, second))


async def test_a_new_pod_is_found(pods: Pods, in_front: Proxy) -> None:
    """A pod that comes later gets its share without a restart of the proxy."""
    await pods.start("127.0.0.1")
    assert (await in_front.chat())[0] == 200
    second = await pods.start("127.0.0.2")
    await until(lambda: _is_reached(in_front, second))


async def _is_reached(running: Proxy, pod: StandIn) -> bool:
    assert (await running.chat())[0] == 200
    return bool(pod.bodies)


async def _is_streamed(running: Proxy, pod: StandIn) -> bool:
    assert (await running.stream()).endswith(DONE.decode())
    return bool(pod.bodies)


@pytest.mark.parametrize("failure", [reset, broken_before_first_event])
async def test_a_reset_is_tried_once_more(pods: Pods, in_front: Proxy, failure: object) -> None:
    """A stream whose connection breaks before its first event comes from the other pod."""
    first, second = await pods.start("127.0.0.1"), await pods.start("127.0.0.2")
    first.respond = failure  # type: ignore[assignment]
    second.respond = streamed(chunk("a"), DONE)
    await until(lambda: _is_streamed(in_front, first))
    assert await retries(in_front) == len(first.bodies)


async def test_a_refusal_is_tried_once_more(
    pods: Pods, in_front: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that is gone, but still listed, costs no request."""
    monkeypatch.setattr(routing, "AVOID_SECONDS", 0)
    pods.listed.append("127.0.0.3")
    pod = await pods.start("127.0.0.1")
    for _ in range(20):
        assert (await in_front.chat())[0] == 200
    assert len(pod.bodies) == 20
    assert await retries(in_front) >= 1


async def test_attempts_are_bounded(pods: Pods, in_front: Proxy) -> None:
    """Where the last attempt fails, too, the client is told, and asked not to begin anew."""
    all_pods = [await pods.start(f"127.0.0.{number}") for number in (1, 2, 3)]
    for pod in all_pods:
        pod.respond = reset
    body = {"model": "tiny", "messages": MESSAGES}
    async with in_front.http.post(in_front.url + CHAT, json=body) as response:
        assert response.status == 502
        assert response.headers["x-should-retry"] == "false"
        assert (await response.json())["error"]["code"] == "upstream_connection_failed"
    assert sum(len(pod.bodies) for pod in all_pods) == 3


async def test_nothing_is_repeated_after_the_first_event(pods: Pods, in_front: Proxy) -> None:
    """A stream that breaks later ends with an error event: its text is not begun anew."""

    async def breaks(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(chunk("a"))
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    first, second = await pods.start("127.0.0.1"), await pods.start("127.0.0.2")
    first.respond = second.respond = breaks
    assert "upstream_stream_broken" in await in_front.stream()
    assert len(first.bodies) + len(second.bodies) == 1


@pytest.mark.parametrize(
    ("status", "num_attempts"), [(400, 1), (429, 1), (500, 1), (502, 3), (503, 3), (504, 1)]
)
async def test_only_who_is_busy_is_asked_again(
    pods: Pods, in_front: Proxy, status: int, num_attempts: int
) -> None:
    """What an upstream refuses, or fails at, is the client's at once; 502 and 503 may pass."""

    async def fails(_: web.Request) -> web.StreamResponse:
        error = {"message": "no", "type": "api_error", "param": None, "code": "x"}
        return web.json_response({"error": error}, status=status)

    first, second = await pods.start("127.0.0.1"), await pods.start("127.0.0.2")
    first.respond = second.respond = fails
    assert (await in_front.chat())[0] >= 400
    assert len(first.bodies) + len(second.bodies) == num_attempts


async def test_no_address_is_told_at_once(in_front: Proxy) -> None:
    """While the name has no address, clients get 502 without a wait."""
    async with asyncio.timeout(2):
        status, body = await in_front.chat()
    assert (status, body["error"]["code"]) == (502, "upstream_connection_failed")


async def test_the_name_is_the_host_header(pods: Pods, in_front: Proxy) -> None:
    """The upstream sees the name that was configured, not a pod's address."""
    pod = await pods.start("127.0.0.1")
    await until(lambda: _is_reached(in_front, pod))
    assert pod.requests[0].headers["host"] == f"pods:{pods.port}"
    assert pod.requests[0].path == CHAT
