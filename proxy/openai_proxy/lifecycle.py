"""The proxy's life: listen, assemble, serve, drain, stop.

SIGTERM or SIGINT: not ready, but accepting, for the drain delay; then no more connections, and
what runs has the grace period to finish; streams that still run then end with an error event; the
backend is stopped last. A second signal ends everything at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from http_edge import cgroup
from http_edge.bytes_in_flight import ByteBudget
from http_edge.connections import Connections
from http_edge.hosts import open_to_all
from openai_protocol.errors import ErrorCode, Unavailable
from openai_proxy import app, error_forms, logging, server, stdin
from openai_proxy.access_log import AccessLog
from openai_proxy.banner import banner
from openai_proxy.config import Settings
from openai_proxy.console import say_beside
from openai_proxy.exchange import Observer
from openai_proxy.limits import Concurrency
from openai_proxy.metrics import Metrics
from openai_proxy.middleware import App
from openai_proxy.running import Running
from openai_proxy.service import Current, Service
from openai_proxy.state import ServerState

if TYPE_CHECKING:
    from openai_proxy.assembly import Assembly
    from openai_proxy.backends.base import Supervisor
    from openai_proxy.config.reload import Apply, Reloader
    from openai_proxy.routing.probe import Readiness
    from openai_proxy.tracing import Tracing

log = structlog.get_logger("openai_proxy")

# After the grace period: for interrupted streams to get their last event out
LAST_EVENTS_SECONDS = 3.0
# Before other settings hold: for what they name to show what it has
FIRST_LOOK_SECONDS = 2.0
_AGAINST_OTHERS = (
    "bind it to loopback (--host 127.0.0.1)",
    "ask for certificates (--tls-client-ca-file)",
    "see to it that a network policy or a gateway keeps others away",
)


class Lifecycle:
    """Owner of all the parts of one proxy; `run` it once, in its own event loop."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        reloader: Callable[[Apply], Reloader] | None = None,
        when_built: Callable[[], None] = lambda: None,
    ) -> None:
        """`reloader` makes what reads the configuration again; without it, it holds for good.

        `when_built` is called once all is there that stays.
        """
        self._when_built = when_built
        self._reloader = reloader(self._apply) if reloader is not None else None
        self._settings = settings
        self._listener = listener
        self._port: int = listener.getsockname()[1]
        self._state = ServerState()
        self._state.follow(settings)
        self._metrics = Metrics(self._state.lists, settings.metrics_namespace)
        self._running = Running()
        self._concurrency = Concurrency()
        self._available_memory = cgroup.available_memory()
        self._budget = ByteBudget(settings.byte_capacity(self._available_memory))
        self._connections = Connections(settings.bounds(self._available_memory), self._budget)
        self._tracing = self._start_tracing()
        self._observers: list[Observer] = [self._metrics]
        if self._tracing is not None:
            self._observers.insert(0, self._tracing)  # first: what others log has the trace's id
        self._service = self._new_service(settings)
        self._retiring: set[Service] = set()
        self._current = Current(self._app(self._service))
        self._backend_url: str | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._is_announced = False

    async def run(self) -> int:
        """Serve until a signal comes or a part fails; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if self._reloader is not None:
            loop.add_signal_handler(signal.SIGHUP, self._reloader.request)
            self._in_background(self._reloader.run())
        grace_seconds = self._settings.grace_seconds + LAST_EVENTS_SECONDS
        web = server.build(self._current, grace_seconds, self._connections, self._settings.tls)
        log.info("listening", host=self._settings.host, port=self._port)
        self._warn_if_open()
        serving = asyncio.create_task(web.serve(sockets=[self._listener]))
        parts = [serving, asyncio.create_task(self._serve())]
        supervisor = self._start_backend()
        if supervisor is not None:
            self._state.backend = supervisor
            parts.append(asyncio.create_task(supervisor.run()))
        if self._settings.exit_on_stdin_close:
            parts.append(asyncio.create_task(stdin.stop_when_closed(self.stop)))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
        exit_code = _failure_of(parts)
        await self._drain(web, serving, with_delay=exit_code is None)
        tasks = (stopping, *parts, *self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            if supervisor is not None:
                await supervisor.stop(self._settings.backend_stop_seconds)
        finally:
            for service in (self._service, *self._retiring):
                await service.close()
        if self._tracing is not None:
            self._tracing.close()
        log.info("stopped")
        return exit_code or 0

    def _warn_if_open(self) -> None:
        if self._settings.tls_client_ca_file is None:
            reason = open_to_all(self._settings.host, _AGAINST_OTHERS)
            if reason is not None:
                log.warning("open_to_all", reason=reason)

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            if number != signal.SIGINT:
                return  # who ends a process group often says so twice; only a person insists
            log.warning("second_signal", signal=signal.Signals(number).name)
            if self._state.backend is not None:
                self._state.backend.kill()
            logging.close()
            os._exit(128 + number)
        log.info("draining", signal=signal.Signals(number).name)
        self.stop()

    def stop(self) -> None:
        """Begin to drain; `run` returns when all is over."""
        self._stop.set()

    async def _apply(self, settings: Settings, changed: frozenset[str]) -> None:
        await self._service.is_built.wait()
        await self.reload(settings)

    async def reload(self, settings: Settings) -> None:
        """Serve new requests with other settings; those that run keep theirs.

        Raises ConfigError, and changes nothing then.
        """
        service = self._new_service(settings)
        try:
            await service.build(self._backend_url, self._backend_model)
            if settings.probe_interval_seconds:
                await service.look(FIRST_LOOK_SECONDS)
            if not settings.logs_as(self._settings):
                await asyncio.to_thread(logging.configure, settings)
        except BaseException:
            await service.close()
            raise
        old, self._service = self._service, service
        # It may have come or gone meanwhile.
        service.use_backend(self._backend_url, self._backend_model)
        self._settings = settings
        self._budget.resize(settings.byte_capacity(self._available_memory))
        self._connections.bounds = settings.bounds(self._available_memory)
        self._use(service)
        self._current.app = self._app(service)
        self._watch(service)
        self._retiring.add(old)
        self._in_background(self._retire(old))
        log.info("reloaded")

    async def _retire(self, service: Service) -> None:
        await service.retire()
        self._retiring.discard(service)

    def _new_service(self, settings: Settings) -> Service:
        form = error_forms.FORMS[settings.errors]
        paths = app.build_paths(self._state, self._metrics, form)
        return Service(
            settings,
            paths,
            self._running,
            self._metrics,
            self._on_readiness,
            self._is_backend_restarting,
        )

    def _app(self, service: Service) -> App:
        settings = service.settings
        access_log = AccessLog(app.HEALTH_ROUTES, settings.access_log, settings.access_log_sample)
        return app.build(
            service.paths,
            [*self._observers, access_log],
            settings,
            lambda: self._state.is_draining,
            self._concurrency,
            self._budget,
            error_forms.FORMS[settings.errors],
        )

    async def _serve(self) -> None:
        """Build what the settings ask for, and watch the upstreams of whatever holds then."""
        await self._service.build()
        self._when_built()
        self._use(self._service)
        self._watch(self._service)
        while self._watching is not None:
            watching = self._watching
            await asyncio.wait({watching})
            if watching is self._watching:
                await watching

    def _use(self, service: Service) -> None:
        self._state.probes = service.probes
        self._state.follow(service.settings)

    def _watch(self, service: Service) -> None:
        before, self._watching = self._watching, self._in_background(service.watch())
        if before is not None:
            before.cancel()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _start_tracing(self) -> Tracing | None:
        if self._settings.otlp_endpoint is None:
            return None
        from openai_proxy import tracing  # not imported unless it is used

        return tracing.build(self._settings, app.HEALTH_ROUTES)

    def _start_backend(self) -> Supervisor | None:
        if self._settings.backend is None:
            return None
        from openai_proxy.backends import launch  # not imported unless it is used

        return launch.supervisor(
            self._settings, self._assembly_when_ready, self._on_backend, self._metrics
        )

    async def _assembly_when_ready(self) -> Assembly:
        await self._service.is_built.wait()
        assert self._service.assembly is not None
        return self._service.assembly

    def _on_backend(self, url: str | None) -> None:
        self._backend_url = url
        for service in (self._service, *self._retiring):  # whose last requests may wait for it
            service.use_backend(url, self._backend_model)

    def _is_backend_restarting(self) -> bool:
        return self._state.backend is not None and self._state.backend.is_restarting

    @property
    def _backend_model(self) -> str | None:
        return None if self._state.backend is None else self._state.backend.model

    def _on_readiness(self, name: str, readiness: Readiness) -> None:
        if not readiness.is_ready:
            if self._state.backend is None or self._state.backend.is_ready:
                log.warning("upstream_not_ready", upstream=name, reason=readiness.reason)
            return
        log.info("upstream_ready", upstream=name, models=list(readiness.models[:20]))
        if self._is_announced or self._settings.quiet or self._state.is_draining:
            return
        self._is_announced = True
        model = self._settings.served_model or next(iter(readiness.models), "MODEL")
        scheme = "http" if self._settings.tls is None else "https"
        say_beside(banner(self._settings.host, self._port, model, scheme) + "\n", sys.stdout)

    async def _drain(
        self, web: server.Server, serving: asyncio.Task[Any], *, with_delay: bool
    ) -> None:
        was_ready = self._state.is_ready
        self._state.is_draining = True
        if with_delay and was_ready:
            await asyncio.sleep(self._settings.drain_delay_seconds)
        web.config.timeout_graceful_shutdown = max(
            1, round(self._settings.grace_seconds + LAST_EVENTS_SECONDS)
        )
        web.should_exit = True
        if self._running:
            log.info("closing", requests=len(self._running))
        timer = asyncio.get_running_loop().call_later(
            self._settings.grace_seconds, self._running.interrupt_all, _shutting_down
        )
        await asyncio.wait({serving})
        timer.cancel()


def _shutting_down() -> Unavailable:
    return Unavailable(
        "The server is shutting down; please try again.", code=ErrorCode.SERVER_SHUTTING_DOWN
    )


def _failure_of(parts: list[asyncio.Task[Any]]) -> int | None:
    """Return the exit code for the first part that has failed, and log why; None if none has."""
    for part in parts:
        if not part.done():
            continue
        error = part.exception()
        exit_code = getattr(error, "exit_code", None)
        if isinstance(exit_code, int):
            log.error(str(error), exit_code=exit_code)
            return exit_code
        log.error("part_failed", exc_info=error)
        return 1
    return None
