"""The server's side of the engine: submits, streams, cancels, restarts and resumes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from kserve_llamacpp.engine_client import refusals
from kserve_llamacpp.engine_client.admission import QueueLimits, gives_way
from kserve_llamacpp.engine_client.dispatcher import Dispatcher
from kserve_llamacpp.engine_client.generation import Generation, Group, Request
from kserve_llamacpp.engine_client.guilt import GuiltyRequests
from kserve_llamacpp.engine_client.observers import EngineObserver, EngineState, RequestObserver
from kserve_llamacpp.engine_client.process import EngineProcess
from kserve_llamacpp.engine_client.restarts import Restarts
from kserve_llamacpp.engine_client.service_rate import ServiceRate
from kserve_llamacpp.engine_client.supervisor import EngineSupervisor
from kserve_llamacpp.engine_client.watchdog import Watchdog
from kserve_llamacpp.wire.frames import (
    Cancel,
    Fatal,
    ModelFacts,
    Output,
    Rejected,
    SharedText,
    SharePrompts,
    Started,
    Step,
    Submit,
)
from openai_protocol.errors import ApiError

_READY_WHILE_RESTARTING_SECONDS = 30.0  # so long a restart is a pause, then the pod is not ready
_TICK_SECONDS = 0.25  # from one look at the clock to the next
_MAX_UNREAD_BYTES = 64 << 20  # requests that came and went while the engine did not read


class EngineClient:
    """Owns the engine's supervisor and every running request; owner: the server's event loop.

    A request is waiting (held, or in the engine's queue) until it has started. When the process
    dies, all are submitted to the next one with the tokens they have.
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
        self._supervisor = EngineSupervisor(
            process, restarts, observer, watchdog, self, clock, sleep
        )
        self._limits = limits
        self._requests = requests
        self._watchdog = watchdog
        self._is_ticking = is_ticking
        self._now = clock
        self._sleep = sleep
        self._log = structlog.get_logger("engine.client")
        self._ticker: asyncio.Task[None] | None = None
        self._rate = ServiceRate()
        self._guilty = GuiltyRequests()
        self._dispatcher = Dispatcher(self._guilty.num_of)
        self._next_id = 1
        self._became_idle = asyncio.Event()

    @property
    def state(self) -> EngineState:
        """Where the engine stands."""
        return self._supervisor.state

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome: the engine answers, or will again in a moment.

        A restart that takes longer than a moment is not worth waiting for where there are others.
        """
        if self.state is EngineState.RESTARTING:
            return self._now() - self._supervisor.down_since <= _READY_WHILE_RESTARTING_SECONDS
        return self.state is EngineState.READY

    @property
    def is_alive(self) -> bool:
        """Whether the engine is still looked after; otherwise only a new server can help."""
        is_ticking = self._ticker is None or not self._ticker.done()
        is_stopped = self.state is EngineState.STOPPED
        return self._supervisor.is_alive and (is_ticking or is_stopped)

    @property
    def facts(self) -> ModelFacts | None:
        """What is known of the model, once it was loaded."""
        return self._supervisor.facts

    @property
    def fatal(self) -> Fatal | None:
        """Why the last engine could not start, if it said so."""
        return self._supervisor.fatal

    @property
    def pid(self) -> int | None:
        """The process id of the running engine."""
        return self._process.pid

    @property
    def num_waiting(self) -> int:
        """How many requests have not started."""
        return len(self._dispatcher.waiting)

    @property
    def num_running(self) -> int:
        """How many requests have started and not ended."""
        return len(self._dispatcher) - self.num_waiting

    def start(self) -> None:
        """Start the process; it is restarted until `stop`."""
        self._supervisor.start()
        if self._is_ticking:
            self._ticker = asyncio.create_task(self._tick_forever(), name="engine-ticker")

    async def settled(self) -> None:
        """Wait until the model is loaded, or this server will never load it."""
        await self._supervisor.settled()

    async def lost(self) -> None:
        """Wait until only a new server can help."""
        await self._supervisor.lost()

    async def stop(self) -> None:
        """End the process and wait for its end; requests that still run fail.

        May be called again, also meanwhile: a second cancellation would leave the process behind.
        """
        if self.state is not EngineState.STOPPED:
            self._supervisor.cancel()
            self.fail_all(refusals.shutting_down())
            if self._ticker is not None:
                self._ticker.cancel()
        await self._supervisor.ended()

    async def idle(self) -> None:
        """Wait until no request runs or waits."""
        while self._dispatcher:
            self._became_idle.clear()
            await self._became_idle.wait()

    def fail_all(self, error: ApiError) -> None:
        """End every request with this error."""
        for generation in self._dispatcher:
            self._end(generation, error)

    def submit(self, requests: Sequence[Request]) -> list[Generation]:
        """Take all choices of a request, or none.

        Raises ApiError: the queue is full, or the model is not ready.
        """
        if self.state not in (EngineState.READY, EngineState.RESTARTING):
            raise self._refusal(refusals.not_ready(self._supervisor.retry_after_seconds()))
        now = self._now()
        if self._guilty.has_any(requests, now):
            raise self._refusal(refusals.failed_before())
        if not self._has_room_for(requests):
            raise self._refusal(refusals.queue_full(self._retry_after_seconds()))
        if not self._dispatcher:
            self._rate.began(now)
        group = Group()
        for request in requests:
            group.generations.append(Generation(self._next_id, request, now, group))
            self._next_id += 1
        self._dispatcher.add(group.generations)
        self._dispatch()
        return list(group.generations)

    def _has_room_for(self, requests: Sequence[Request]) -> bool:
        """Whether the queue takes a request; a full one may refuse others for it."""
        num_slots = self.facts.max_sequences if self.facts is not None else 0
        waiting = self._dispatcher.waiting
        num_active, num_new = len(self._dispatcher), len(requests)
        if self._process.num_unread_bytes > _MAX_UNREAD_BYTES:
            return False
        will_wait = num_active + num_new > num_slots
        if will_wait and not self._limits.holds_tokens(waiting, requests):
            return False
        excess = self._limits.num_too_many(num_active, len(waiting), num_new, num_slots)
        if excess == 0:
            return True
        leaving = gives_way(waiting, requests, excess)
        for group in leaving:
            self._refuse(group, refusals.queue_full(self._retry_after_seconds()))
        return bool(leaving)

    def _refuse(self, group: Group, error: ApiError) -> None:
        """End a request of which nothing has begun."""
        self._refusal(error)
        for generation in group.generations:
            if not generation.is_ended:
                self._end(generation, error)

    def _refusal(self, error: ApiError) -> ApiError:
        self._requests.request_refused(str(error.code))
        return error

    def _retry_after_seconds(self) -> float:
        return self._rate.retry_after_seconds(self.num_waiting + 1, self._now())

    def share_prompts(self, texts: list[SharedText]) -> None:
        """Let all requests that begin alike share these beginnings, in the running engine."""
        if self.state is EngineState.READY:
            self._process.send(SharePrompts(texts))

    def cancel(self, generation: Generation) -> None:
        """Drop a request, if it still runs; its sequence is freed before the engine's next step."""
        if generation.is_ended:
            return
        self._drop(generation, "abort")
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
        groups = dict.fromkeys(g.group for g in self._dispatcher.waiting if g.came_at < latest)
        late = [group for group in groups if not group.has_begun]
        for group in late:
            self._refuse(group, refusals.queue_timeout(self._retry_after_seconds()))
        if late or self._dispatcher.num_submitted < len(self._dispatcher):
            self._dispatch()  # what is held may wait for a time alone
        silence = self._watchdog.silence(now, has_work=self._dispatcher.num_submitted > 0)
        if silence is not None:
            self._supervisor.end_hung(silence)

    # -- EngineUser ----------------------------------------------------------------------------

    def engine_ready(self) -> None:
        """Submit what may be submitted."""
        self._dispatcher.engine_ready(self._now())
        self._dispatch()

    def engine_stepped(self, step: Step) -> None:
        """Hand on what a step gave."""
        for event in step.events:
            self._apply(event)
        self._requests.stepped(step.stats)

    def engine_gone(self) -> tuple[int, int]:
        """Hold all requests for the next engine; end those that are guilty of this one's death."""
        now = self._now()
        num_requests = self._dispatcher.num_submitted
        guilty = self._dispatcher.hold_all(now)
        if guilty is None:
            return num_requests, 0
        self._guilty.add(guilty.request, now)
        self._requests.request_guilty(guilty.request.request_id, guilty.num_deaths)
        for generation in guilty.group.generations:
            if not generation.is_ended:
                self._end(generation, refusals.failed_often())
        return num_requests, guilty.num_deaths

    def engine_failed(self, error: ApiError) -> None:
        """End all requests: nobody knows when the next engine comes."""
        self.fail_all(error)

    # -- requests ------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self.state is EngineState.READY:
            before: Request | None = None
            for generation in self._dispatcher.next_to_submit(self._now()):
                self._send_submit(generation, before)
                before = generation.request

    def _send_submit(self, generation: Generation, before: Request | None) -> None:
        """Give the engine a request; `before` is what it got just before, whose prompt it has."""
        request = generation.request
        is_shared = (
            before is not None
            and before.prompt is request.prompt
            and before.request_id == request.request_id
        )
        self._process.send(
            Submit(
                id=generation.id,
                request_id=request.request_id,
                prompt=None if is_shared else request.prompt,
                max_tokens=request.max_tokens,
                sampling=request.sampling,
                stops=request.stops,
                resume=list(generation.tokens),
                add_special=request.add_special,
                tenant=request.tenant,
                priority=request.priority,
                cache_salt=request.cache_salt,
                is_apart=request.is_apart,
                owner=request.owner,
                ended=request.ended,
                is_resumable=request.is_resumable,
                num_scored=generation.num_scored,
            )
        )

    def _apply(self, event: Started | Output | Rejected) -> None:
        generation = self._dispatcher.find(event.id)
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
                if event.tokens and self._progressed(generation) and finish_reason is None:
                    self._dispatch()
                if finish_reason is not None:
                    self._leave(generation, finish_reason)
                    self._dispatch()
            case Rejected(reason=reason, message=message):
                self._end(generation, refusals.rejected(reason, message, generation.request.field))
                self._dispatch()

    def _progressed(self, generation: Generation) -> bool:
        """Note that a request got tokens; whether others may be submitted for it."""
        self._supervisor.progressed()
        return self._dispatcher.progressed(generation, self._now())

    def _observe_tokens(self, generation: Generation) -> None:
        now = self._now()
        if generation.last_token_at is None:
            self._requests.first_token(now - generation.came_at)
        else:
            self._requests.next_token(now - generation.last_token_at)
        generation.last_token_at = now

    def _end(self, generation: Generation, error: ApiError) -> None:
        self._drop(generation, "error")
        generation.fail(error)

    def _drop(self, generation: Generation, reason: str) -> None:
        """Forget a request, in the engine, too."""
        was_submitted = self._leave(generation, reason)
        if was_submitted and self.state is EngineState.READY:
            self._process.send(Cancel(generation.id))

    def _leave(self, generation: Generation, reason: str) -> bool:
        """Forget a request; whether it had been submitted."""
        generation.is_ended = True
        was_submitted = self._dispatcher.remove(generation)
        if not self._dispatcher:
            self._became_idle.set()
        if generation.prompt_tokens is not None:
            self._rate.ended(self._now())
        self._requests.request_ended(reason, self._now() - generation.came_at)
        return was_submitted
