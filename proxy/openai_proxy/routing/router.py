"""From a request's model to the upstream that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openai_protocol.errors import ErrorCode, Unavailable
from openai_proxy.config.upstreams import DEFAULT_UPSTREAM
from openai_proxy.routing.models import ModelTable, Resolved

if TYPE_CHECKING:
    from openai_proxy.routing.upstream import Upstream

RETRY_AFTER_SECONDS = 2.0
_KEPT_ROUTES = 256


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and what its model means there."""

    upstream: Upstream
    resolved: Resolved


class Router:
    """Knows the upstreams, and what they list; owner: the service, which sets both.

    A backend that is not ready is no upstream; an upstream that others run always is one, since
    it can say itself what it lacks. The first one is the default.
    """

    def __init__(self, table: ModelTable | None = None, *, without_upstream: bool = False) -> None:
        self.table = table or ModelTable()
        self.without_upstream = without_upstream
        self._upstreams: dict[str, Upstream | None] = {}
        self._listed: dict[str, tuple[str, ...]] = {}
        self.fixed: dict[str, tuple[str, ...]] = {}  # models of those that are not asked for them
        self._news: asyncio.Event | None = None  # while somebody waits for a change
        self._routes: dict[str | None, Route] = {}  # those that were found, while all else holds

    def use(
        self,
        upstream: Upstream | None,
        name: str = DEFAULT_UPSTREAM,
        models: tuple[str, ...] = (),
    ) -> None:
        """Send requests there from now on, or nowhere; it keeps the place that it had.

        `models`: it serves these, and is not asked what it lists.
        """
        self._routes.clear()
        self._upstreams[name] = upstream
        if self._news is not None:
            self._news.set()
            self._news = None
        self._listed.setdefault(name, models)
        if models:
            self.fixed[name] = models

    async def changed(self) -> None:
        """Wait until an upstream has come or gone."""
        if self._news is None:
            self._news = asyncio.Event()
        await self._news.wait()

    def note_models(self, models: tuple[str, ...], name: str = DEFAULT_UPSTREAM) -> None:
        """Take note of what an upstream lists."""
        if name not in self.fixed:
            self._routes.clear()
            self._listed[name] = models

    @property
    def upstreams(self) -> Mapping[str, Upstream | None]:
        """The upstreams by name; None for a backend that is not ready."""
        return self._upstreams

    def backend(self) -> Upstream:
        """Return the proxy's own backend; raises Unavailable while it is not ready."""
        upstream = self._upstreams.get(DEFAULT_UPSTREAM)
        if upstream is None:
            raise _not_ready()
        return upstream

    def route(self, model: str | None) -> Route:
        """Return the route for a model's name.

        Raises Unavailable while there is none, NotFound for a model that nobody may use or has.
        """
        known = self._routes.get(model)
        if known is not None:
            return known
        route = self._find(model)
        if len(self._routes) < _KEPT_ROUTES:
            self._routes[model] = route
        return route

    def _find(self, model: str | None) -> Route:
        if self.without_upstream:
            raise Unavailable("There is no model here yet.", code=ErrorCode.MODEL_NOT_READY)
        if not self._upstreams:
            raise _not_ready()
        resolved = self.table.resolve(model, self._listed)
        upstream = self._upstreams.get(resolved.upstream)
        if upstream is None:
            raise _not_ready()
        return Route(upstream, resolved)


def _not_ready() -> Unavailable:
    return Unavailable(
        "The model is not ready yet; please try again in a moment.",
        code=ErrorCode.MODEL_NOT_READY,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
