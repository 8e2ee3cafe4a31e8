"""A stand-in for the server that gives tokens, and the key for it as SAP AI Core gives it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from openai_proxy.server import listen
from openai_proxy.tls import ServerTLS, server_context

CLIENT_ID = "sb-1234!b5678|aicore!b540"
SECRET = "hunter2$+/=%"  # noqa: S105  # a stand-in's


@dataclass
class TokenServer:
    """A stand-in for SAP's token server: a new token for each request, of this life."""

    url: str = ""
    life: Any = 43199
    status: int = 200
    body: bytes | None = None
    delay: asyncio.Event | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)

    async def token(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append(form)
        self.requests.append(request)
        number = len(self.asked)
        if self.delay is not None:
            await self.delay.wait()
        if self.body is not None:
            return web.Response(status=self.status, body=self.body)
        if self.status != 200:
            error = {"error": "unauthorized", "error_description": f"Bad {form} {SECRET}"}
            return web.json_response(error, status=self.status)
        answer = {"access_token": f"token-{number}", "token_type": "bearer", "jti": "1"}
        if self.life is not None:
            answer["expires_in"] = self.life
        return web.json_response(answer)


@asynccontextmanager
async def token_server(tls: ServerTLS | None = None) -> AsyncIterator[TokenServer]:
    """Run a stand-in on a port of its own."""
    standin = TokenServer()
    app = web.Application()
    app.router.add_post("/oauth/token", standin.token)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    listener = listen("127.0.0.1", 0)
    context = None if tls is None else server_context(tls)
    await web.SockSite(runner, listener, ssl_context=context).start()
    scheme, port = "http" if tls is None else "https", listener.getsockname()[1]
    standin.url = f"{scheme}://127.0.0.1:{port}"
    try:
        yield standin
    finally:
        await runner.cleanup()


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def service_key(url: str, **changes: Any) -> str:
    """A key as SAP AI Core gives it."""
    return json.dumps(
        {
            "serviceurls": {"AI_API_URL": "https://api.ai.example.com"},
            "appname": "1234!b5678|aicore!b540",
            "clientid": CLIENT_ID,
            "clientsecret": SECRET,
            "identityzone": "tenant",
            "identityzoneid": "1234",
            "url": url,
            "credential-type": "binding-secret",
            **changes,
        }
    )
