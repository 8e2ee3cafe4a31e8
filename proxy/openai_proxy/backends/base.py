"""A model server that the proxy runs: started, watched, restarted, stopped.

    STOPPED -> STARTING -> WARMING -> READY -> (it died) BACKING_OFF -> STARTING ...
                                            -> FAILED    where a restart cannot help

What is special about the real program it gets from a `Backend`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import structlog

from openai_proxy.backends import ports
from openai_proxy.backends.kind import (
    EXIT_GAVE_UP,
    EXIT_PORT_TAKEN,
    Backend,
    BackendError,
    address,
    fill,
)
from openai_proxy.backends.output import Output
from openai_proxy.backends.ports import Received, has_grown
from openai_proxy.backends.process import GuardedProcess

log = structlog.get_logger("openai_proxy.backend")

POLL_SECONDS = 0.25
PROGRESS_SECONDS = 10.0
# A backend that was ready for so long has not failed to start when it ends
STABLE_SECONDS = 60.0
# A ready backend whose port refuses connections so often in a row serves nobody any more.
PORT_SECONDS = 2.0
REFUSALS_TO_CLOSED = 3
# At most so long between two looks at whether it still answers.
LIFE_SECONDS = 10.0
# One that says so often in a row that it cannot go on is ended, if it does not end by itself.
LOOKS_TO_OVER = 3
LIVENESS_SETTING = "--backend-liveness-timeout"


class BackendState(StrEnum):
    """Where the backend is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    BACKING_OFF = "backing_off"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """How to run a backend; `port` 0 takes a free one at each start.

    `environment` is all that the process gets, but for the backend's own variables and for
    `variables`, which come last; `{host}` and `{port}` in them are filled.
    """

    host: str = "127.0.0.1"
    port: int = 0
    startup_timeout_seconds: float = 600
    max_restarts: int = 5
    backoff_seconds: float = 1
    backoff_cap_seconds: float = 30
    liveness_timeout_seconds: float = 600
    stop_seconds: float = 5
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


class Life(StrEnum):
    """What a look at a backend that was ready has shown."""

    ALIVE = "alive"
    SILENT = "silent"  # no answer: it may be busy
    OVER = "over"  # it says itself that it cannot go on


@dataclass(frozen=True, slots=True)
class Checks:
    """How to look at a backend by its base URL.

    `warm_up` has it answer once; returns its name for the model, or None while it does not answer.
    `life` tells whether it shows life within some seconds, `received` how many bytes have come over
    each connection to it.
    """

    is_loaded: Callable[[str], Awaitable[bool]]
    warm_up: Callable[[str], Awaitable[str | None]]
    is_open: Callable[[str], Awaitable[bool]]
    life: Callable[[str, float], Awaitable[Life]]
    received: Callable[[str], Received]


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
        find_port: Callable[[str, int], int] = ports.find_port,
    ) -> None:
        self.state = BackendState.STOPPED
        self.url: str | None = None
        self.model = backend.model
        self.num_restarts = 0
        self._backend = backend
        self._options = options
        self._checks = checks
        self._output = output
        self._on_ready = on_ready
        self._on_start = on_start
        self._sleep = sleep
        self._clock = clock
        self._find_port = find_port
        self._process: GuardedProcess | None = None
        self._last_exit: int | None = None
        self._is_stranger_told = False
        self._is_port_lost = False
        self._has_been_ready = False
        self._is_over = False  # it said so itself

    @property
    def is_ready(self) -> bool:
        """Whether it answers requests."""
        return self.state is BackendState.READY

    @property
    def is_restarting(self) -> bool:
        """Whether it was ready, is not now, and will be tried again."""
        settled = (BackendState.READY, BackendState.FAILED)
        return self._has_been_ready and self.state not in settled

    def report(self) -> dict[str, Any]:
        """Return what `/health` tells of it."""
        report: dict[str, Any] = {
            "status": str(self.state),
            "name": self._backend.name,
            "model": self.model,
            "restarts": self.num_restarts,
        }
        if self._last_exit is not None:
            report["last_exit_code"] = self._last_exit
        return report

    async def run(self) -> None:
        """Run it, again and again; until cancelled. Raises BackendError."""
        try:
            given = {**self._options.environment, **self._options.variables}
            self._backend.check(given.get("PATH"))
            await self._keep_running()
        except BackendError:
            self.state = BackendState.FAILED
            raise

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

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            seconds_ready = await self._run_once()
            failures = 1 if seconds_ready >= STABLE_SECONDS else failures + 1
            if failures > self._options.max_restarts:
                raise BackendError(self._gave_up(failures), EXIT_GAVE_UP)
            self.num_restarts += 1
            if self._is_port_lost:  # somebody took the free port first; there are more
                log.warning("backend_port_taken")
                continue
            self.state = BackendState.BACKING_OFF
            wait = backoff(failures, self._options)
            log.warning("backend_ended", exit_code=self._last_exit, restart_in_seconds=wait)
            await self._sleep(wait)

    async def _run_once(self) -> float:
        """Start it and see it to its end; returns for how many seconds it was ready."""
        self.state = BackendState.STARTING
        self._is_port_lost = False
        self._is_over = False
        try:
            process, port = await self._start()
        except OSError as error:  # no descriptors, no memory: there may be some in a moment
            log.warning("backend_not_started", error=str(error))
            self._leave()
            return 0.0
        assert self.url is not None
        ready = asyncio.create_task(self._get_ready(self.url, process.pid, port))
        ended = asyncio.create_task(process.wait())
        ready_at = None
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and ready.result():
                ready_at = self._clock()
                await self._serve(self.url, process, ended)
            elif not ended.done():
                await process.stop(0)
                raise BackendError(self._too_slow(), EXIT_GAVE_UP)
            self._last_exit = await ended
            self._process = None
        finally:
            ready.cancel()
            ended.cancel()
            self._leave()
        if ready_at is not None:
            return self._clock() - ready_at
        self._judge(self._last_exit)
        return 0.0

    async def _start(self) -> tuple[GuardedProcess, int]:
        host = self._options.host
        port = self._find_port(host, self._options.port)
        self.url = f"http://{address(ports.connectable(host), port)}"
        self._on_start()
        log.info("backend_starting", backend=self._backend.name, model=self._backend.model)
        place = {"host": host, "port": str(port)}
        environment = {
            **self._options.environment,
            **self._backend.environment(host, port),
            **{name: fill(text, place) for name, text in self._options.variables.items()},
        }
        command = self._backend.command(host, port)
        process = await GuardedProcess.start(command, self._output, environment)
        self._process = process
        return process, port

    async def _get_ready(self, url: str, pid: int, port: int) -> bool:
        """Wait until it has loaded its model and answered once; False where that takes too long."""
        started = told = self._clock()
        limit = self._options.startup_timeout_seconds
        while self._clock() - started < limit:
            if self.state is BackendState.STARTING and await self._is_loaded(url, pid, port):
                self.state = BackendState.WARMING
            if self.state is BackendState.WARMING and await self._has_answered(url):
                self.state = BackendState.READY
                self._has_been_ready = True
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

    async def _is_loaded(self, url: str, pid: int, port: int) -> bool:
        if not await self._checks.is_loaded(url):
            return False
        if self._backend.listens_itself and ports.listens(pid, port) is False:
            if not self._is_stranger_told:
                log.warning("another program answers on the backend's port", port=port)
            self._is_stranger_told = True
            return False
        return True

    async def _has_answered(self, url: str) -> bool:
        model = await self._checks.warm_up(url)
        if model is None:
            return False
        self.model = model
        return True

    async def _serve(self, url: str, process: GuardedProcess, ended: asyncio.Task[int]) -> None:
        """Return when it has ended; end it when it has closed its port for good, or hangs."""
        closed = asyncio.create_task(self._port_closes(url))
        silent = asyncio.create_task(self._falls_silent(url))
        try:
            await asyncio.wait({ended, closed, silent}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
            silent.cancel()
        if ended.done():
            return
        if closed.done():
            log.warning("backend_port_closed")
        elif self._is_over:
            log.warning("backend_is_over", path=self._backend.liveness_path)
        else:
            seconds = self._options.liveness_timeout_seconds
            log.warning("backend_hangs", silent_seconds=seconds, setting=LIVENESS_SETTING)
        self._leave()
        await process.stop(self._options.stop_seconds)

    async def _port_closes(self, url: str) -> None:
        refusals = 0
        while refusals < REFUSALS_TO_CLOSED:
            await self._sleep(PORT_SECONDS)
            refusals = 0 if await self._checks.is_open(url) else refusals + 1

    async def _falls_silent(self, url: str) -> None:
        """Return when it has given no sign of life for too long, or says that it cannot go on.

        One that is too busy to answer is alive while bytes of other answers come. 0: nobody looks.
        """
        limit = self._options.liveness_timeout_seconds
        if not limit:
            await asyncio.Event().wait()
        pause = min(LIFE_SECONDS, limit / 4)
        num_over = 0
        heard_at = self._clock()
        before: Received | None = None  # at the last look, if that was not answered
        while True:
            await self._sleep(pause)
            # before the look, whose own answer is no sign of life
            now = self._checks.received(url) if before is not None else None
            life = await self._checks.life(url, pause)
            num_over = num_over + 1 if life is Life.OVER else 0
            if num_over == LOOKS_TO_OVER:
                self._is_over = True
                return
            if life is not Life.SILENT:
                heard_at, before = self._clock(), None
                continue
            if before is None or now is None:
                before = self._checks.received(url)
                continue
            if has_grown(before, now):
                heard_at = self._clock()
            elif self._clock() - heard_at >= limit:
                return
            before = now

    def _leave(self) -> None:
        if self.is_ready:
            self._on_ready(None)
        self.state = BackendState.STOPPED
        self.url = None

    def _judge(self, exit_code: int) -> None:
        """Raise BackendError where the end of one that was never ready says that it is hopeless.

        Once it has been ready, a cause such as a model file that is away may pass.
        """
        verdict = self._backend.judge(exit_code, tuple(self._output.said))
        if verdict is None:
            return
        port = self._options.port
        if verdict.exit_code == EXIT_PORT_TAKEN and not port:
            self._is_port_lost = True
            return
        if verdict.exit_code == EXIT_PORT_TAKEN != exit_code:
            # By its words alone: this port, or another that it needs? For this one it raises.
            self._find_port(self._options.host, port)
            return
        if self._has_been_ready and verdict.exit_code != EXIT_PORT_TAKEN:
            log.warning("backend_complains", error=verdict.message)
            return
        raise BackendError(verdict.message, verdict.exit_code)

    def _gave_up(self, failures: int) -> str:
        text = (
            f"the {self._backend.name} backend ended {failures} times in a row; the last it "
            f"said: {self._output.last_message}"
        )
        if self._last_exit == 0:
            text += "; it ended with 0 each time: it must stay in the foreground"
        return text

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
