"""Keeps an engine running: one process after another, with pauses, until the server ends.

LOADING -> READY -> (it died) RESTARTING -> READY ...
                              -> FAILED  after too many deaths in a row, and tried again
        -> FAILED  where the first load fails for a reason that stays: the server ends
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from kserve_llamacpp.engine_client import refusals
from kserve_llamacpp.engine_client.observers import EngineObserver, EngineState
from kserve_llamacpp.engine_client.process import (
    KILLED_WHILE_LOADING,
    EngineProcess,
    NotStarted,
    ProcessStuck,
)
from kserve_llamacpp.engine_client.restarts import Restarts
from kserve_llamacpp.engine_client.watchdog import Watchdog
from kserve_llamacpp.wire.frames import Fatal, Hello, Loading, ModelFacts, Report, Step
from openai_protocol.errors import ApiError

# Where no process can be made for so long (no descriptors, no memory), a new server may be able to.
NOT_STARTED_SECONDS = 300.0


class EngineUser(Protocol):
    """Has requests for the engine, and is told how it fares; must not block nor raise."""

    def engine_ready(self) -> None:
        """The engine takes requests from now on."""

    def engine_stepped(self, step: Step) -> None:
        """The engine finished a step."""

    def engine_gone(self) -> tuple[int, int]:
        """The engine has died; return how many requests it had, and how many deaths are explained.

        They are where a request was found guilty of them.
        """

    def engine_failed(self, error: ApiError) -> None:
        """No engine is to be expected soon."""


class EngineSupervisor:
    """Owns the engine's process and its state; owner: the client, on the server's event loop.

    Invariant: until `stop`, an engine runs or will be started, or `lost` returns.
    """

    def __init__(
        self,
        process: EngineProcess,
        restarts: Restarts,
        observer: EngineObserver,
        watchdog: Watchdog,
        user: EngineUser,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.state = EngineState.LOADING
        self.facts: ModelFacts | None = None  # once the model was loaded
        self.fatal: Fatal | None = None  # what the last engine said that could not start
        self.down_since = 0.0
        self.next_start_at = 0.0
        self._process = process
        self._restarts = restarts
        self._observer = observer
        self._watchdog = watchdog
        self._user = user
        self._now = clock
        self._sleep = sleep
        self._log = structlog.get_logger("engine.supervisor")
        self._task: asyncio.Task[None] | None = None
        self._is_hung = False  # the running process was killed for its silence
        self._not_started_since: float | None = None
        self._settled = asyncio.Event()
        self._lost = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        """Whether engines are still looked after; otherwise only a new server can help."""
        if self.state is EngineState.STOPPED or self._task is None:
            return True
        return not self._task.done() and not self._lost.is_set()

    def start(self) -> None:
        """Start the first process."""
        self._task = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def settled(self) -> None:
        """Wait until the model is loaded, or this server will never load it."""
        await self._settled.wait()

    async def lost(self) -> None:
        """Wait until nobody looks after the engine any more, though nobody has said `stop`."""
        await self._lost.wait()

    def cancel(self) -> None:
        """Begin to end the process."""
        self._set_state(EngineState.STOPPED)
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Wait for the process's end; may be called again, also meanwhile."""
        if self._task is not None:
            await asyncio.wait([self._task])
        self._settled.set()

    def progressed(self) -> None:
        """A request has got a token: the engine is worth its restarts."""
        self._restarts.progressed()

    def end_hung(self, silent_seconds: float) -> None:
        """Kill an engine that is silent over its work; the next one follows."""
        self._is_hung = True
        self._observer.engine_hung(silent_seconds)
        self._process.kill()

    def retry_after_seconds(self) -> float:
        """Return when it is worth asking again, while no engine is to be expected soon."""
        return max(0.0, self.next_start_at - self._now()) + 5.0

    async def _supervise(self) -> None:
        try:
            while await self._run_one():
                await self._sleep(self._restarts.delay_seconds)
        except ProcessStuck as error:
            self._lose(str(error))
        except Exception:
            self._log.exception("engine_supervisor_failed")
            self._lose("its supervision failed")
        finally:
            self._settled.set()

    async def _run_one(self) -> bool:
        """Run one process to its end; whether another is to follow."""
        self._is_hung = False
        self.fatal = None
        self._watchdog.started()
        try:
            status = await self._process.run(self._take)
            self._not_started_since = None
        except NotStarted as error:
            return self._not_started(error)
        except ProcessStuck:
            raise
        except Exception:  # a report that cannot be used: that engine is of no use either
            self._log.exception("engine_report_failed")
            status = None
        if self._was_killed_while_loading(status):
            self.fatal = Fatal("out_of_memory", KILLED_WHILE_LOADING)
        if self.facts is None and self.fatal is not None:
            self._set_state(EngineState.FAILED)
            return False
        if self.fatal is not None:
            self._observer.engine_not_started(self.fatal.message)
        self._observer.engine_died(status)
        return self._after_death()

    def _not_started(self, error: NotStarted) -> bool:
        now = self._now()
        self._observer.engine_not_started(str(error))
        if self.facts is None and not error.is_passing:
            self.fatal = Fatal("configuration", str(error))
            self._set_state(EngineState.FAILED)
            return False
        if self._not_started_since is None:
            self._not_started_since = now
        if now - self._not_started_since >= NOT_STARTED_SECONDS:
            self._lose(str(error))
            return False
        if self.facts is None:  # the first load waits until one can be made
            self._restarts.died(now)
            return True
        return self._after_death()

    def _after_death(self) -> bool:
        """Say what becomes of the requests, and how the model stands; whether to go on."""
        now = self._now()
        num_requests, num_explained = self._user.engine_gone()
        self._restarts.died(now)
        if num_explained:
            self._restarts.forgive(num_explained)
        self.next_start_at = now + self._restarts.delay_seconds
        # An engine with requests may have died of one: that shows when they are tried alone.
        is_clear = not num_requests or num_explained > 0
        is_failed = self._restarts.is_exhausted and is_clear
        if self.facts is None:
            if is_failed:
                self._set_state(EngineState.FAILED)
            return not is_failed
        if is_failed:
            self._fail()
        elif self.state is not EngineState.FAILED:
            self._set_state(EngineState.RESTARTING)
        return True

    def _was_killed_while_loading(self, status: int | None) -> bool:
        is_ours = self._is_hung or self.fatal is not None
        return self.facts is None and status == -signal.SIGKILL and not is_ours

    def _take(self, report: Report) -> None:
        self._not_started_since = None
        match report:
            case Loading(fraction=fraction):
                self._watchdog.loading()
                self._observer.loading(fraction)
            case Hello(facts=facts):
                self._watchdog.loaded()
                self.facts = facts
                self._set_state(EngineState.READY)
                self._settled.set()
                self._user.engine_ready()
            case Fatal():
                self.fatal = report
            case Step(stats=stats):
                num_tokens = stats.prefill_tokens + stats.decode_tokens
                self._watchdog.stepped(stats.step_seconds, num_tokens)
                self._user.engine_stepped(report)

    def _fail(self) -> None:
        self._set_state(EngineState.FAILED)
        self._user.engine_failed(refusals.engine_failed(self.retry_after_seconds()))

    def _lose(self, why: str) -> None:
        self._observer.engine_lost(why)
        self._fail()
        self._lost.set()

    def _set_state(self, state: EngineState) -> None:
        if state is not self.state and self.state is not EngineState.STOPPED:
            if self.state is EngineState.READY:
                self.down_since = self._now()
            self.state = state
            self._observer.state_changed(state)
