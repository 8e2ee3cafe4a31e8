"""What the stand-ins of model servers share: a real socket, and what they were asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from openai_proxy.dialects.base import Dialect
from tests.proxy import harness, translating

MODEL = "m/1 é"  # a name that must be quoted


@dataclass
class Server:
    """A stand-in; `respond`, where it is set, answers what is generated in its stead."""

    url: str = ""
    paths: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    respond: harness.Respond | None = None
    is_ready: bool = True
    began: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def asked(self, request: web.Request) -> Any:
        """Remember a request; return its body."""
        self.paths.append(request.raw_path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(json.loads(await request.read()))
        self.began.set()
        return self.bodies[-1]


@asynccontextmanager
async def served(server: Server, routes: Iterable[web.RouteDef]) -> AsyncIterator[Server]:
    """Run a stand-in on a port of its own; its handlers are cancelled when their client leaves."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_routes(routes)
    async with translating.served(app) as server.url:
        yield server


@asynccontextmanager
async def proxy_for(
    dialect: Dialect, url: str, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[harness.Proxy]:
    """Run a proxy whose upstream speaks a dialect."""
    monkeypatch.setattr("openai_proxy.assembly.make_dialect", lambda *_: dialect)
    async with harness.proxy(upstream_url=url, **settings) as running:
        yield running


def shout(prompt: str) -> str:
    """What the model says to a prompt."""
    return prompt.upper() + "!"
