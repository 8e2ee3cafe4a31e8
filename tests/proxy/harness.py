"""A stand-in upstream and a proxy in front of it, both on real sockets of this process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import uvicorn.server
from aiohttp import ClientSession, web

from openai_proxy.config import load
from openai_proxy.lifecycle import Lifecycle
from openai_proxy.server import listen

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
# A proxy's settings, unless a test wants others: its end is not waited for.
DEFAULTS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "quiet": True,
    "drain_delay_seconds": 0,
    "grace_seconds": 0.2,
    "probe_interval_seconds": 0.2,
}
Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


def chunk(text: str) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
    }
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def start_stream(request: web.Request) -> web.StreamResponse:
    """Begin a stream at the upstream."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


def streamed(*parts: bytes) -> Respond:
    """Answer with a stream of these bytes, each in a write of its own."""

    async def respond(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0)
        return response

    return respond


def answered(status: int, body: bytes | str, media_type: str, **headers: str) -> Respond:
    """Answer with this status and body."""

    async def respond(_: web.Request) -> web.StreamResponse:
        data = body if isinstance(body, bytes) else body.encode()
        return web.Response(
            status=status, body=data, headers={"content-type": media_type, **headers}
        )

    return respond


def answered_json(value: Any, status: int = 200, **headers: str) -> Respond:
    """Answer with this value as JSON."""
    return answered(status, json.dumps(value), "application/json", **headers)


@dataclass
class StandIn:
    """An upstream that does as `respond` says and remembers what it was asked."""

    respond: Respond = field(default_factory=lambda: answered_json(COMPLETION))
    models: Respond = field(
        default_factory=lambda: answered_json(
            {
                "object": "list",
                "data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "me"}],
                "models": ["tiny"],
            }
        )
    )
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    peers: set[object] = field(default_factory=set)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Serve one generating request."""
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        self.requests.append(request)
        self.bodies.append(await request.read())
        self.began.set()
        try:
            return await self.respond(request)
        except (asyncio.CancelledError, ConnectionError):
            self.closed.set()
            raise

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        """Serve the list of models."""
        return await self.models(request)

    async def one_model(self, request: web.Request) -> web.StreamResponse:
        """Serve one model."""
        if request.match_info["model"] != "tiny":
            return web.json_response({"error": "no such model"}, status=404)
        return web.json_response({"id": "tiny", "object": "model", "created": 1, "owned_by": "me"})


@asynccontextmanager
async def upstream(listener: socket.socket | None = None) -> AsyncIterator[StandIn]:
    """Run a stand-in; the handler is cancelled when its client leaves."""
    standin = StandIn()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/{path:.*}", standin.post)
    app.router.add_get("/v1/models", standin.list_models)
    app.router.add_get("/v1/models/{model}", standin.one_model)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    listener = listener or listen("127.0.0.1", 0)
    await web.SockSite(runner, listener).start()
    host, port = listener.getsockname()
    standin.url = f"http://{host}:{port}"
    try:
        yield standin
    finally:
        await runner.cleanup()


@dataclass
class Proxy:
    """A running proxy: its address and a plain HTTP client for it."""

    url: str
    port: int
    http: ClientSession
    lifecycle: Lifecycle
    task: asyncio.Task[int]

    async def chat(self, **fields: Any) -> tuple[int, Any]:
        """Post a chat request; returns status and decoded body."""
        body = {"model": "tiny", "messages": MESSAGES, **fields}
        async with self.http.post(self.url + CHAT, json=body) as response:
            return response.status, await response.json()

    async def stream(self, **fields: Any) -> str:
        """Post a streamed chat request; returns the whole stream."""
        body = {"model": "tiny", "messages": MESSAGES, "stream": True, **fields}
        async with self.http.post(self.url + CHAT, json=body) as response:
            assert response.status == 200, await response.text()
            return await response.text()

    async def get(self, path: str) -> tuple[int, Any]:
        """Get a path; returns status and decoded body."""
        async with self.http.get(self.url + path) as response:
            return response.status, await response.json()


class _HastyAsyncio(ModuleType):
    """asyncio for uvicorn: whether it shall end, it looks more often than ten times a second."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(_: float) -> None:
        await asyncio.sleep(0.005)


@asynccontextmanager
async def proxy(**settings: Any) -> AsyncIterator[Proxy]:
    """Run a proxy until the block ends; it is ready when its upstream is, or has looked in vain."""
    # Its end would take 0.2 seconds of waiting, in each of a thousand tests.
    uvicorn.server.asyncio = _HastyAsyncio("asyncio")  # type: ignore[attr-defined]
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    lifecycle = Lifecycle(load({**DEFAULTS, **settings}), listener)
    task = asyncio.create_task(lifecycle.run())
    async with ClientSession() as http:
        running = Proxy(f"http://127.0.0.1:{port}", port, http, lifecycle, task)
        await until(lambda: _has_looked(lifecycle), every=0.002)
        yield running
    lifecycle.stop()
    await asyncio.wait_for(task, 10)


def _has_looked(lifecycle: Lifecycle) -> bool:
    probe = next(iter(lifecycle._state.probes.values()), None)
    return probe is not None and probe.readiness.reason != "not looked at yet"


async def until(
    condition: Callable[[], Awaitable[bool] | bool], seconds: float = 5, every: float = 0.02
) -> None:
    """Wait until a condition holds; fails after so many seconds."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if value if isinstance(value, bool) else await value:
                return
            await asyncio.sleep(every)


def refused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
