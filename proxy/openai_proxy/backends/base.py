"""A model server that the proxy runs: started, watched, restarted, stopped.

    STOPPED -> STARTING -> WARMING -> READY -> (it died) BACKING_OFF -> STARTING ...
                                            -> FAILED    where a restart cannot help

It gets the real program's name and exit codes from a `Backend`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import structlog

from openai_proxy.backends.output import Output
from openai_proxy.backends.process import GuardedProcess

log = structlog.get_logger("openai_proxy.backend")

POLL_SECONDS = 0.25
PROGRESS_SECONDS = 10.0
# A backend that was ready for so long has not failed to start when it ends
STABLE_SECONDS = 60.0
EXIT_PORT_TAKEN = 3
EXIT_GAVE_UP = 1


class BackendState(StrEnum):
    """Where the backend is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    BACKING_OFF = "backing_off"
    FAILED = "failed"


class BackendError(Exception):
    """The backend cannot run; the proxy ends with this exit code and text."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Backend(Protocol):
    """One kind of model server: its command line and the meaning of its exit codes."""

    @property
    def name(self) -> str:
        """The kind's name, as in `--backend`."""

    @property
    def model(self) -> str:
        """The name of the model that it serves."""

    def command(self, host: str, port: int) -> list[str]:
        """Return the command that serves the model on this address."""

    def hopeless(self, exit_code: int) -> bool:
        """Tell whether a process that ended so would end so again."""


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """How to run a backend; `port` 0 takes a free one at each start."""

    host: str = "127.0.0.1"
    port: int = 0
    startup_timeout_seconds: float = 600
    max_restarts: int = 5
    backoff_seconds: float = 1
    backoff_cap_seconds: float = 30


@dataclass(frozen=True, slots=True)
class Checks:
    """How to look at a backend by its base URL."""

    is_loaded: Callable[[str], Awaitable[bool]]
    warm_up: Callable[[str], Awaitable[bool]]


class Supervisor:
    """Keeps one backend running; owner of its process and its state.

    `on_ready` hears the base URL when it answers, and None when it no longer does.
    """

    def __init__(
        self,
        backend: Backend,
        options: SupervisorOptions,
        checks: Checks,
        output: Output,
        on_ready: Callable[[str | None], None],
        on_start: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = BackendState.STOPPED
        self.url: str | None = None
        self.num_restarts = 0
        self._backend = backend
        self._options = options
        self._checks = checks
        self._output = output
        self._on_ready = on_ready
        self._on_start = on_start
        self._sleep = sleep
        self._clock = clock
        self._process: GuardedProcess | None = None
        self._last_exit: int | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it answers requests."""
        return self.state is BackendState.READY

    def report(self) -> dict[str, Any]:
        """Return what `/health` tells of it."""
        report: dict[str, Any] = {
            "status": str(self.state),
            "name": self._backend.name,
            "model": self._backend.model,
            "restarts": self.num_restarts,
        }
        if self._last_exit is not None:
            report["last_exit_code"] = self._last_exit
        return report

    async def run(self) -> None:
        """Run it, again and again; until cancelled. Raises BackendError."""
        failures = 0
        while True:
            seconds_ready = await self._run_once()
            failures = 1 if seconds_ready >= STABLE_SECONDS else failures + 1
            if failures > self._options.max_restarts:
                self._fail(
                    f"the {self._backend.name} backend ended {failures} times in a row; the last "
                    f"it said: {self._output.last_message}",
                    EXIT_GAVE_UP,
                )
            self.num_restarts += 1
            if self._last_exit == EXIT_PORT_TAKEN and not self._options.port:
                continue  # somebody else took the free port; there are more
            self.state = BackendState.BACKING_OFF
            wait = backoff(failures, self._options)
            log.warning("backend_ended", exit_code=self._last_exit, restart_in_seconds=wait)
            await self._sleep(wait)

    async def stop(self, grace_seconds: float) -> None:
        """End it: ask, wait, insist; does nothing where it does not run."""
        process = self._process
        if process is not None:
            await process.stop(grace_seconds)
            self._process = None
        self.state = BackendState.STOPPED

    def kill(self) -> None:
        """End its whole process group at once."""
        if self._process is not None:
            self._process.kill()

    async def _run_once(self) -> float:
        """Start it and see it to its end; returns for how many seconds it was ready."""
        self.state = BackendState.STARTING
        host = self._options.host
        port = self._options.port or free_port(host)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._on_start()
        command = self._backend.command(host, port)
        log.info("backend_starting", backend=self._backend.name, model=self._backend.model)
        process = self._process = await GuardedProcess.start(command, self._output)
        ready = asyncio.create_task(self._get_ready(self.url))
        ended = asyncio.create_task(process.wait())
        ready_at = None
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and ready.result():
                ready_at = self._clock()
            elif not ended.done():
                await process.stop(0)
                self._fail(self._too_slow(), EXIT_GAVE_UP)
            self._last_exit = await ended
            self._process = None
        finally:
            ready.cancel()
            ended.cancel()
            self._leave()
        if self._backend.hopeless(self._last_exit) or (
            self._last_exit == EXIT_PORT_TAKEN and self._options.port
        ):
            self._fail(self._output.last_message, self._last_exit)
        return 0.0 if ready_at is None else self._clock() - ready_at

    async def _get_ready(self, url: str) -> bool:
        """Wait until it has loaded its model and answered once; False where that takes too long."""
        started = told = self._clock()
        limit = self._options.startup_timeout_seconds
        while self._clock() - started < limit:
            if self.state is BackendState.STARTING and await self._checks.is_loaded(url):
                self.state = BackendState.WARMING
            if self.state is BackendState.WARMING and await self._checks.warm_up(url):
                self.state = BackendState.READY
                seconds = round(self._clock() - started, 1)
                log.info("backend_ready", backend=self._backend.name, seconds=seconds)
                self._on_ready(url)
                return True
            if self._clock() - told >= PROGRESS_SECONDS:
                told = self._clock()
                log.info(
                    "waiting for the backend",
                    state=str(self.state),
                    seconds=round(told - started),
                    limit_seconds=limit,
                )
            await self._sleep(POLL_SECONDS)
        return False

    def _leave(self) -> None:
        if self.is_ready:
            self._on_ready(None)
        self.state = BackendState.STOPPED
        self.url = None

    def _fail(self, message: str, exit_code: int) -> None:
        self.state = BackendState.FAILED
        raise BackendError(message, exit_code)

    def _too_slow(self) -> str:
        return (
            f"the {self._backend.name} backend was not ready within "
            f"{self._options.startup_timeout_seconds:g} s; give it more with "
            "--backend-startup-timeout"
        )


def backoff(failures: int, options: SupervisorOptions) -> float:
    """Return the wait before the next start: doubled with each failure, up to the cap."""
    doubled: float = options.backoff_seconds * 2 ** min(max(failures - 1, 0), 30)
    return min(doubled, options.backoff_cap_seconds)


def free_port(host: str) -> int:
    """Return a port that is free just now; another program may still take it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
