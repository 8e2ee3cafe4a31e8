"""The ASGI application: middleware, then a table of paths, then what FastAPI declares.

The table answers from the start. What takes long to import (the HTTP client, FastAPI) is built by
`assembly` while the server already listens, and is added to the table then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from openai_protocol.errors import Unavailable, http_error
from openai_proxy.api.health import PATHS, Health
from openai_proxy.exchange import Observer, exchange_of
from openai_proxy.metrics import Metrics
from openai_proxy.middleware import (
    App,
    CloseWhileDraining,
    LimitBody,
    Observe,
    Receive,
    RenderErrors,
    Scope,
    Send,
)
from openai_proxy.routing.router import RETRY_AFTER_SECONDS
from openai_proxy.state import ServerState

# A request that comes before the server is complete waits for it, which takes about half a second.
START_SECONDS = 10.0

Table = dict[str, dict[str, App]]
HEALTH_ROUTES = PATHS | {f"/v1{path}" for path in PATHS}


class Paths:
    """Finds the endpoint for a path and a method; `declared` gets all that the table lacks."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._declared: App | None = None
        self._is_complete = asyncio.Event()

    def add(self, table: Table, declared: App) -> None:
        """Add endpoints, and the application for all other paths."""
        self._table.update(table)
        self._declared = declared
        self._is_complete.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        methods = self._table.get(scope["path"])
        if methods is None and self._declared is None:
            await self._completion()
            methods = self._table.get(scope["path"])
        if methods is not None:
            exchange_of(scope).route = scope["path"]
            method = scope["method"]
            endpoint = methods.get("GET" if method == "HEAD" else method)
            if endpoint is None:
                raise http_error(405, method, scope["path"][:256])
            await endpoint(scope, receive, send)
        else:
            assert self._declared is not None
            await self._declared(scope, receive, send)

    async def _completion(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._is_complete.wait()
        except TimeoutError:
            raise Unavailable(
                "The server is starting; please try again in a moment.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from None


def health_table(state: ServerState, metrics: Metrics) -> Table:
    """Return the endpoints that answer from the start, each also under /v1."""
    health = Health(state, metrics)
    table: Table = {
        "/health": {"GET": health.detail},
        "/health/live": {"GET": health.live},
        "/health/ready": {"GET": health.ready},
        "/metrics": {"GET": health.metrics},
    }
    return table | {f"/v1{path}": methods for path, methods in table.items()}


def build(
    paths: Paths,
    observers: Sequence[Observer],
    max_body_bytes: int,
    is_draining: Callable[[], bool],
) -> App:
    """Return the application: the middleware around the paths."""
    limited = RenderErrors(LimitBody(paths, max_body_bytes))
    return Observe(CloseWhileDraining(limited, is_draining), observers)
