"""The server's side of the engine: submits, streams, cancels, restarts and resumes."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from kserve_llamacpp.engine import refusals
from kserve_llamacpp.engine.admission import QueueLimits, gives_way
from kserve_llamacpp.engine.frames import (
    Cancel,
    Fatal,
    Hello,
    Loading,
    ModelFacts,
    Output,
    Rejected,
    Report,
    Started,
    Step,
    Submit,
)
from kserve_llamacpp.engine.generation import Generation, Request
from kserve_llamacpp.engine.observers import EngineObserver, EngineState, RequestObserver
from kserve_llamacpp.engine.process import KILLED_WHILE_LOADING, EngineProcess, Restarts
from kserve_llamacpp.engine.service_rate import ServiceRate
from kserve_llamacpp.engine.watchdog import Watchdog
from openai_protocol.errors import ApiError

_SUSPECT_DEATHS = 2  # so many engines in a row died under a request: it is tried once alone
_READY_WHILE_RESTARTING_SECONDS = 30.0  # so long a restart is a pause, then the pod is not ready
_TICK_SECONDS = 0.25  # from one look at the clock to the next
_MAX_UNREAD_BYTES = 64 << 20  # requests that came and went while the engine did not read


class EngineClient:
    """Owns the engine's process and every running request; owner: the server's event loop.

    A request is waiting (in `_held` or in the engine's queue) until it has started. When the
    process dies, all are submitted to the next one with the tokens they have.
    """

    def __init__(
        self,
        process: EngineProcess,
        restarts: Restarts,
        limits: QueueLimits,
        observer: EngineObserver,
        requests: RequestObserver,
        watchdog: Watchdog,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        is_ticking: bool = True,
    ) -> None:
        """`limits` bound the requests that have not started.

        Who is not `is_ticking` calls `tick` itself.
        """
        self._process = process
        self._restarts = restarts
        self._limits = limits
        self._observer = observer
        self._requests = requests
        self._watchdog = watchdog
        self._is_ticking = is_ticking
        self._now = clock
        self._sleep = sleep
        self._log = structlog.get_logger("engine.client")
        self._state = EngineState.LOADING
        self._facts: ModelFacts | None = None
        self._fatal: Fatal | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._is_hung = False  # the running process was killed for its silence
        self._down_since = 0.0
        self._rate = ServiceRate()
        self._settled = asyncio.Event()
        self._active: dict[int, Generation] = {}
        self._held: deque[Generation] = deque()  # waits for an engine, or for a suspect's end
        self._suspect: Generation | None = None
        self._next_id = 1
        self._became_idle = asyncio.Event()

    @property
    def state(self) -> EngineState:
        """Where the engine stands."""
        return self._state

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome: the engine answers, or will again in a moment.

        A restart that takes longer than a moment is not worth waiting for where there are others.
        """
        if self._state is EngineState.RESTARTING:
            return self._now() - self._down_since <= _READY_WHILE_RESTARTING_SECONDS
        return self._state is EngineState.READY

    @property
    def facts(self) -> ModelFacts | None:
        """What is known of the model, once it was loaded."""
        return self._facts

    @property
    def fatal(self) -> Fatal | None:
        """Why the engine cannot start, if it said so."""
        return self._fatal

    @property
    def pid(self) -> int | None:
        """The process id of the running engine."""
        return self._process.pid

    @property
    def num_waiting(self) -> int:
        """How many requests have not started."""
        return len(self._waiting())

    @property
    def num_running(self) -> int:
        """How many requests have started and not ended."""
        return len(self._active) - self.num_waiting

    def start(self) -> None:
        """Start the process; it is restarted until `stop`, or until the policy gives up."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")
        if self._is_ticking:
            self._ticker = asyncio.create_task(self._tick_forever(), name="engine-ticker")

    async def settled(self) -> None:
        """Wait until the model is loaded, or will never be."""
        await self._settled.wait()

    async def stop(self) -> None:
        """End the process and wait for its end; requests that still run fail.

        May be called again, also meanwhile: a second cancellation would leave the process behind.
        """
        if self._state is not EngineState.STOPPED:
            self._set_state(EngineState.STOPPED)
            self.fail_all(refusals.shutting_down())
            for task in (self._supervisor, self._ticker):
                if task is not None:
                    task.cancel()
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor])
            if not self._supervisor.cancelled():
                self._supervisor.result()  # raises what made it fail
        self._settled.set()

    async def idle(self) -> None:
        """Wait until no request runs or waits."""
        while self._active:
            self._became_idle.clear()
            await self._became_idle.wait()

    def fail_all(self, error: ApiError) -> None:
        """End every request with this error."""
        for generation in list(self._active.values()):
            self._end(generation, error)

    def submit(self, request: Request) -> Generation:
        """Take a request; raises ApiError: the queue is full, or the model is not ready."""
        if self._state not in (EngineState.READY, EngineState.RESTARTING):
            raise self._refusal(refusals.not_ready())
        if not self._has_room_for(request):
            raise self._refusal(refusals.queue_full(self._retry_after_seconds()))
        generation = Generation(self._next_id, request, self._now())
        self._next_id += 1
        if not self._active:
            self._rate.began(generation.came_at)
        self._active[generation.id] = generation
        self._held.append(generation)
        self._dispatch()
        return generation

    def _waiting(self) -> list[Generation]:
        return [g for g in self._active.values() if g.prompt_tokens is None]

    def _has_room_for(self, request: Request) -> bool:
        """Whether the queue takes a request; a full one may refuse another one for it."""
        num_slots = self._facts.max_sequences if self._facts is not None else 0
        waiting = self._waiting()
        if self._process.num_unread_bytes > _MAX_UNREAD_BYTES:
            return False
        will_wait = len(self._active) >= num_slots
        if will_wait and not self._limits.holds_tokens(waiting, request):
            return False
        if self._limits.holds_one_more(len(self._active), len(waiting), num_slots):
            return True
        other = gives_way(waiting, request.tenant)
        if other is not None:
            self._end(other, self._refusal(refusals.queue_full(self._retry_after_seconds())))
        return other is not None

    def _refusal(self, error: ApiError) -> ApiError:
        self._requests.request_refused(str(error.code))
        return error

    def _retry_after_seconds(self) -> float:
        return self._rate.retry_after_seconds(self.num_waiting + 1, self._now())

    def cancel(self, generation: Generation) -> None:
        """Drop a request, if it still runs; its sequence is freed before the engine's next step."""
        if generation.is_ended:
            return
        self._leave(generation, "abort")
        if generation in self._held:
            self._held.remove(generation)
        else:
            self._process.send(Cancel(generation.id))
        self._dispatch()

    # -- the clock -----------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        while True:
            await self._sleep(_TICK_SECONDS)
            try:
                self.tick()
            except Exception:  # without its clock the engine would go on unwatched
                self._log.exception("engine_tick_failed")

    def tick(self) -> None:
        """Look at the clock: refuse who has waited too long, end an engine that hangs."""
        now = self._now()
        latest = now - (self._limits.timeout_seconds or math.inf)
        late = [generation for generation in self._waiting() if generation.came_at < latest]
        for generation in late:
            error = refusals.queue_timeout(self._retry_after_seconds())
            self._end(generation, self._refusal(error))
        if late:
            self._dispatch()
        silence = self._watchdog.silence(now, has_work=bool(self._active))
        if silence is not None:
            self._is_hung = True
            self._observer.engine_hung(silence)
            self._process.kill()

    # -- the process ---------------------------------------------------------------------------

    async def _supervise(self) -> None:
        try:
            while True:
                self._is_hung = False
                self._watchdog.started()
                status = await self._process.run(self._take)
                if self._was_killed_while_loading(status):
                    self._fatal = Fatal("out_of_memory", KILLED_WHILE_LOADING)
                if self._facts is None and self._fatal is not None:
                    self._set_state(EngineState.FAILED)
                    return
                self._observer.engine_died(status)
                delay = self._restarts.delay_after_death(self._now())
                if delay is None:
                    self._give_up()
                    return
                self._set_state(
                    EngineState.LOADING if self._facts is None else EngineState.RESTARTING
                )
                self._requeue_all()
                await self._sleep(delay)
        except Exception:
            self._log.exception("engine_supervisor_failed")
            self._give_up()
            raise
        finally:
            self._settled.set()

    def _was_killed_while_loading(self, status: int | None) -> bool:
        is_ours = self._is_hung or self._fatal is not None
        return self._facts is None and status == -signal.SIGKILL and not is_ours

    def _take(self, report: Report) -> None:
        match report:
            case Loading(fraction=fraction):
                self._watchdog.loading()
                self._observer.loading(fraction)
            case Hello(facts=facts):
                self._watchdog.loaded()
                self._facts = facts
                self._set_state(EngineState.READY)
                self._settled.set()
                self._dispatch()
            case Fatal():
                self._fatal = report
            case Step(events=events, stats=stats):
                num_tokens = stats.prefill_tokens + stats.decode_tokens
                self._watchdog.stepped(stats.step_seconds, num_tokens)
                for event in events:
                    self._apply(event)
                self._requests.stepped(stats)

    def _give_up(self) -> None:
        self._set_state(EngineState.FAILED)
        self.fail_all(refusals.engine_failed())

    # -- requests ------------------------------------------------------------------------------

    def _requeue_all(self) -> None:
        """After a death: everything goes on from its tokens in the next engine, suspects alone."""
        self._suspect = None
        waiting_before = set(self._held)
        for generation in self._active.values():
            if generation not in waiting_before:
                generation.num_deaths += 1
        guilty = [g for g in self._active.values() if g.num_deaths > _SUSPECT_DEATHS]
        for generation in guilty:
            self._end(generation, refusals.failed_often())
        if guilty:  # it explains the deaths before: the others need not run alone one by one
            for generation in self._active.values():
                generation.num_deaths = min(generation.num_deaths, 1)
        self._held = deque(self._active.values())

    def _dispatch(self) -> None:
        """Submit what is held; while a suspect runs, it runs alone."""
        if self._state is not EngineState.READY or self._suspect is not None:
            return
        suspects = [g for g in self._held if g.num_deaths >= _SUSPECT_DEATHS]
        if suspects:
            if len(self._active) == len(self._held):  # nothing else runs
                self._suspect = suspects[0]
                self._held.remove(self._suspect)
                self._send_submit(self._suspect)
            return
        while self._held:
            self._send_submit(self._held.popleft())

    def _send_submit(self, generation: Generation) -> None:
        request = generation.request
        self._process.send(
            Submit(
                id=generation.id,
                request_id=request.request_id,
                prompt=request.prompt,
                max_tokens=request.max_tokens,
                sampling=request.sampling,
                stops=request.stops,
                resume=list(generation.tokens),
                add_special=request.add_special,
                tenant=request.tenant,
                priority=request.priority,
                cache_salt=request.cache_salt,
                ended=request.ended,
                is_resumable=request.is_resumable,
                num_scored=generation.num_scored,
            )
        )

    def _apply(self, event: Started | Output | Rejected) -> None:
        generation = self._active.get(event.id)
        if generation is None:  # cancelled meanwhile
            return
        match event:
            case Started(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens):
                if generation.prompt_tokens is None:  # else: started again after a death
                    waited = self._now() - generation.came_at
                    self._requests.request_started(waited, prompt_tokens, cached_tokens)
                    generation.put_started(event)
            case Output(finish_reason=finish_reason):
                if event.tokens:
                    self._observe_tokens(generation)
                generation.put(event)
                if finish_reason is not None:
                    self._leave(generation, finish_reason)
                    self._dispatch()
            case Rejected(reason=reason, message=message):
                self._end(generation, refusals.rejected(reason, message, generation.request.field))
                self._dispatch()

    def _observe_tokens(self, generation: Generation) -> None:
        now = self._now()
        if generation.last_token_at is None:
            self._requests.first_token(now - generation.came_at)
        else:
            self._requests.next_token(now - generation.last_token_at)
        generation.last_token_at = now

    def _end(self, generation: Generation, error: ApiError) -> None:
        if generation in self._held:
            self._held.remove(generation)
        elif self._state is EngineState.READY:
            self._process.send(Cancel(generation.id))
        self._leave(generation, "error")
        generation.fail(error)

    def _leave(self, generation: Generation, reason: str) -> None:
        generation.is_ended = True
        del self._active[generation.id]
        if self._suspect is generation:
            self._suspect = None
        if not self._active:
            self._became_idle.set()
        if generation.prompt_tokens is not None:
            self._rate.ended(self._now())
        self._requests.request_ended(reason, self._now() - generation.came_at)

    def _set_state(self, state: EngineState) -> None:
        if state is not self._state:
            if state is EngineState.RESTARTING:
                self._down_since = self._now()
            self._state = state
            self._observer.state_changed(state)
