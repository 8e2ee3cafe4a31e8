"""The ASGI application: middleware, then a table of paths, then what FastAPI declares.

The table answers from the start. What takes long to import (the HTTP client, FastAPI) is built by
`assembly` while the server already listens, and is added to the table then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from http_edge.bytes_in_flight import ByteBudget
from http_edge.head_rules import HeadRules
from http_edge.hosts import HostRules
from openai_protocol.errors import Unavailable, http_error
from openai_proxy.api.health import PATHS, Health
from openai_proxy.api.swagger import Swagger
from openai_proxy.config import Settings
from openai_proxy.cors import AllowOrigins
from openai_proxy.error_forms import FORMS, ErrorForm
from openai_proxy.exchange import Observer, exchange_of
from openai_proxy.heads import CheckHead
from openai_proxy.limits import Concurrency, LimitBody, LimitConcurrency
from openai_proxy.metrics import Metrics
from openai_proxy.middleware import (
    App,
    Observe,
    Receive,
    RenderErrors,
    Scope,
    Send,
)
from openai_proxy.routing.router import RETRY_AFTER_SECONDS
from openai_proxy.state import ServerState
from openai_proxy.tls import RequireClientCertificate

# A request that comes before the server is complete waits for it, which takes about half a second.
START_SECONDS = 10.0

Table = dict[str, dict[str, App]]
HEALTH_ROUTES = PATHS | {f"/v1{path}" for path in PATHS}
_OPENAI = FORMS["openai"]
# What the kubelet asks, which has no certificate to show.
PROBE_PATHS = frozenset(
    f"{prefix}/health/{name}" for prefix in ("", "/v1") for name in ("live", "ready")
)


class Paths:
    """Finds the endpoint for a path and a method; `declared` gets all that the table lacks."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._declared: App | None = None
        self._is_complete = asyncio.Event()

    def add(self, table: Table) -> None:
        """Add endpoints, which answer from now on."""
        self._table.update(table)

    def complete(self, table: Table, declared: App) -> None:
        """Add the last endpoints, and the application for all other paths."""
        self.add(table)
        self._declared = declared
        self._is_complete.set()

    async def known(self) -> frozenset[str]:
        """Return the paths in the table, once it is complete; raises Unavailable."""
        await self._completion()
        return frozenset(self._table)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        methods = self._table.get(scope["path"])
        if methods is None:
            return self._serve_others(scope, receive, send)
        return _endpoint(methods, scope)(scope, receive, send)

    async def _serve_others(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._declared is None:
            await self._completion()
            methods = self._table.get(scope["path"])
            if methods is not None:
                await _endpoint(methods, scope)(scope, receive, send)
                return
        assert self._declared is not None
        # The server leaves the body out of what it sends for HEAD.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        await self._declared(asked, receive, send)

    async def _completion(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._is_complete.wait()
        except TimeoutError:
            raise Unavailable(
                "The server is starting; please try again in a moment.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from None


def _endpoint(methods: dict[str, App], scope: Scope) -> App:
    """Return the endpoint for a method of a known path; raises MethodNotAllowed."""
    exchange_of(scope).route = scope["path"]
    method = scope["method"]
    endpoint = methods.get("GET" if method == "HEAD" else method)
    if endpoint is None:
        raise http_error(405, method, scope["path"][:256])
    return endpoint


def build_paths(state: ServerState, metrics: Metrics, form: ErrorForm = _OPENAI) -> Paths:
    """Return the paths with the endpoints that are there from the start."""
    swagger = Swagger(lambda: paths.known(), form)  # noqa: PLW0108  # not there yet
    paths = Paths(under_v1(health_table(state, metrics) | swagger.table()))
    return paths


def under_v1(table: Table) -> Table:
    """Return the endpoints, each also under /v1: some platforms pass nothing else."""
    return table | {f"/v1{path}": methods for path, methods in table.items()}


def health_table(state: ServerState, metrics: Metrics) -> Table:
    """Return what tells of the server's state."""
    health = Health(state, metrics)
    return {
        "/": {"GET": health.ok},
        "/health": {"GET": health.detail},
        "/health/live": {"GET": health.live},
        "/health/ready": {"GET": health.ready},
        "/metrics": {"GET": health.metrics},
    }


def build(
    paths: Paths,
    observers: Sequence[Observer],
    settings: Settings,
    is_draining: Callable[[], bool],
    concurrency: Concurrency,
    budget: ByteBudget,
    form: ErrorForm = _OPENAI,
) -> App:
    """Return the application: the middleware around the paths.

    `concurrency` and `budget` count what runs and what is in flight, also what began under other
    settings.
    """
    limited: App = LimitConcurrency(paths, settings.max_concurrent_requests, concurrency, budget)
    limited = LimitBody(limited, settings.max_body_bytes)
    if settings.tls_client_ca_file is not None:
        limited = RequireClientCertificate(limited, PROBE_PATHS)
    edge: App = RenderErrors(limited, form)
    if settings.cors is not None:
        edge = AllowOrigins(edge, settings.cors, form)
    hosts = HostRules(settings.host, settings.allowed_hosts)
    edge = CheckHead(edge, HeadRules(hosts, "--allowed-hosts"), form)
    return Observe(edge, observers, is_draining=is_draining)
