"""What one configuration makes: upstreams, routes, endpoints, probes. A reload makes another."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from openai_proxy.app import Paths
from openai_proxy.config import Settings
from openai_proxy.config.upstreams import DEFAULT_UPSTREAM
from openai_proxy.metrics import Metrics
from openai_proxy.running import Running

if TYPE_CHECKING:
    from openai_proxy.assembly import Assembly
    from openai_proxy.routing.probe import Probe, Readiness
    from openai_proxy.routing.router import Router


class Service:
    """Owner of one configuration's parts: `build` it, `watch` its upstreams as a task, `retire` it.

    `paths` answers from the start; what it lacks waits until all is built.
    """

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        running: Running,
        metrics: Metrics,
        on_readiness: Callable[[str, Readiness], None],
        is_backend_restarting: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self.paths = paths
        self.running = Running(running)
        self.probes: dict[str, Probe] = {}
        self.is_built = asyncio.Event()
        self.assembly: Assembly | None = None
        self._router: Router | None = None
        self._backend_url: str | None = None
        self._metrics = metrics
        self._on_readiness = on_readiness
        self._is_backend_restarting = is_backend_restarting

    async def build(self, backend_url: str | None = None, backend_model: str | None = None) -> None:
        """Import what is slow, in a thread, and build all parts; a backend where one is ready.

        Raises ConfigError for what only shows when it is built.
        """
        module = await asyncio.to_thread(importlib.import_module, "openai_proxy.assembly")
        probing = await asyncio.to_thread(importlib.import_module, "openai_proxy.routing.probe")
        self.assembly = module.Assembly(self.settings)
        router = self._router = self.assembly.router()
        await self.assembly.load_templates()
        self.use_backend(backend_url, backend_model)
        upstreams = self.assembly.upstreams(router, self._is_backend_restarting)
        self.assembly.add_endpoints(self.paths, upstreams, self.running, self._metrics)
        await asyncio.to_thread(importlib.import_module, "openai_proxy.api.models")
        self.assembly.add_models(self.paths, router, self.running)
        for name in list(router.upstreams) or [DEFAULT_UPSTREAM]:
            self.probes[name] = probing.Probe(
                lambda name=name: router.upstreams.get(name),
                self.settings.probe_interval_seconds,
                on_change=lambda readiness, name=name: self._note(name, readiness),
            )
        self.is_built.set()

    async def look(self, seconds: float) -> None:
        """Look at each upstream once, so long at most: to know what is ready, and who has what."""
        looks = [asyncio.create_task(probe.look()) for probe in self.probes.values()]
        _, late = await asyncio.wait(looks, timeout=seconds)
        for task in late:
            task.cancel()

    async def watch(self) -> None:
        """Look at the upstreams again and again; until cancelled."""
        async with asyncio.TaskGroup() as group:
            for probe in self.probes.values():
                group.create_task(probe.run())

    def use_backend(self, url: str | None, model: str | None = None) -> None:
        """Send requests to the backend at this address, or nowhere while it is None.

        `model` is its own name for its model.
        """
        if self._router is None or url == self._backend_url:
            return
        assert self.assembly is not None
        self._backend_url = url
        if url is not None:
            self._router.table = self.assembly.model_table(model)
        self._router.use(None if url is None else self.assembly.backend(url))

    async def retire(self) -> None:
        """Wait until the last request that began here has ended, then close."""
        await self.running.wait_for_none()
        await self.close()

    async def close(self) -> None:
        """Close all connections to upstreams."""
        if self.assembly is not None:
            await self.assembly.close()

    def _note(self, name: str, readiness: Readiness) -> None:
        assert self._router is not None
        # One that is away has what it had: another must not get its requests.
        if readiness.is_ready:
            self._router.note_models(readiness.models, name)
        self._on_readiness(name, readiness)


class Current:
    """The application of the configuration that holds now; a request keeps its own."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        """Serve one request."""
        served: Awaitable[None] = self.app(scope, receive, send)
        return served
