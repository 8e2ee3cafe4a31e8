"""The loop's body: schedule, decode, sample, emit. Pure over a `Backend` and a clock; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from kserve_llamacpp.engine.backend import (
    Backend,
    DecodeFailed,
    KVCacheFull,
    LogitsNotFinite,
    Row,
)
from kserve_llamacpp.engine.cache.memory import CacheStats
from kserve_llamacpp.engine.cache.shared_prompts import SharedPrompts
from kserve_llamacpp.engine.preparations import Preparation, Preparations
from kserve_llamacpp.engine.prompt_reader import PromptReader
from kserve_llamacpp.engine.reading import PART_TOKENS, EndedBefore, read, replay, show, started
from kserve_llamacpp.engine.schedule.scheduler import Chunk, Plan, Scheduler
from kserve_llamacpp.engine.schedule.step_budget import StepBudget
from kserve_llamacpp.engine.sequence import Sampler, Sequence
from kserve_llamacpp.wire.frames import (
    Event,
    Logprobs,
    Output,
    Rejected,
    SharedText,
    SharePrompts,
    Stats,
    Step,
    Submit,
)

# How long requests are prepared between two steps: a step takes some ten times as long.
_BUSY_SECONDS = 0.005
_IDLE_SECONDS = 0.05


@dataclass(frozen=True)
class Draw:
    """The token that a sequence got, and what the model thought of it, where that was asked for."""

    sequence: Sequence
    token: int
    logprobs: list[Logprobs]
    is_known: bool = False  # it was drawn by an earlier engine, and its text is out


class Engine:
    """Runs sequences over one model; owner: the engine process, one thread.

    `prompts` tells which can be served. Invariant: between two calls, every event that happened
    has been returned.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        budget: StepBudget,
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self.prompts = PromptReader(backend)
        self._scheduler = scheduler
        self._budget = budget
        self._now = clock
        self._preparations = Preparations(clock)
        self._shared_prompts = SharedPrompts()
        self._sequences: dict[int, Sequence] = {}
        self._events: list[Event] = []
        self._steps = 0
        self._prefill_tokens = 0
        self._decode_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do something or has something to tell."""
        return bool(self._events or self._preparations) or self._scheduler.has_work

    @property
    def num_preparing(self) -> int:
        """How many requests are not in the queue yet, for they are still being prepared."""
        return len(self._preparations)

    def submit(self, request: Submit) -> None:
        """Take a request into the queue, or refuse or end it with events."""
        prompt = request.prompt
        assert prompt is not None, "whoever takes the frames knows the prompt of the one before"
        if isinstance(prompt, str):
            prompt = self.prompts.read_short(prompt, request.add_special)
        ready = self.prompts.with_tokens(request, prompt)
        if isinstance(ready, Rejected):
            self.reject(ready)
            return
        sequence = Sequence(
            id=request.id,
            request_id=request.request_id,
            prompt=prompt,
            max_tokens=self._token_limit(prompt, request),
            sampling=request.sampling,
            stops=request.stops,
            resume=request.resume,
            tenant=request.tenant,
            priority=request.priority,
            cache_salt=request.cache_salt,
            num_unsalted=0 if request.is_apart else self._shared_prompts.length(prompt),
            owner=request.owner,
        )
        sequence.is_resumable = request.is_resumable
        preparation = self._prepare(sequence, request)
        if len(request.resume) > PART_TOKENS:
            self._preparations.put(request.id, request.tenant, preparation)
        else:
            for _ in preparation:
                pass

    def share_prompts(
        self, command: SharePrompts, tokenize: Callable[[SharedText], list[int]]
    ) -> list[int]:
        """Let sequences with these beginnings share them; return how many tokens of each, or 0.

        `tokenize` returns a text's tokens, none for one that has none or too many.
        """

        def followed(prompt: SharedText, ending: str) -> list[int]:
            return tokenize(msgspec.structs.replace(prompt, text=prompt.text + ending))

        return self._shared_prompts.replace([partial(followed, each) for each in command.prompts])

    def _prepare(self, sequence: Sequence, request: Submit) -> Preparation:
        """Replay what is resumed, and let the sequence wait for its turn; comes back in parts.

        Where that was all, its end is told instead.
        """
        rest, reason = "", request.ended
        if reason is None:
            try:
                rest, reason = yield from replay(self._backend, sequence)
            except EndedBefore:
                text = "a resumed token comes after the end of its choice"
                self.reject(Rejected(request.id, "ended_before", text))
                return
        yield from show(self._backend, sequence)
        if reason is not None:
            self._announce(sequence)
            self._events.append(Output(sequence.id, [], rest, reason))
            return
        if request.sampling.logprobs is not None:
            sequence.draw_again(max(request.num_scored, sequence.text.num_shown))
        sampler = self._backend.sampler(request.sampling, sequence.prompt)
        try:
            for count, token in enumerate(sequence.generated, start=1):
                sampler.accept(token)
                if count % PART_TOKENS == 0:
                    yield
        except GeneratorExit:
            sampler.close()
            raise
        sequence.sampler = sampler
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)

    def reject(self, rejected: Rejected) -> None:
        """Tell that a request is refused."""
        self._events.append(rejected)

    def cancel(self, id: int) -> None:
        """Drop a sequence and its cells now; nothing more is told of it."""
        self._preparations.drop(id)
        sequence = self._sequences.get(id)
        if sequence is not None:
            self._release(sequence)

    def step(self) -> Step:
        """Schedule, decode, sample, emit: one token for every sequence that can have one.

        Raises DecodeFailed when the model is in an unknown state.
        """
        scheduler = self._scheduler
        is_busy = bool(self._events) or scheduler.has_work
        self._preparations.run(_BUSY_SECONDS if is_busy else _IDLE_SECONDS)
        plan = scheduler.schedule(self._budget.prefill_tokens(scheduler.num_decoding))
        drawn: list[Draw] = []
        for batch in self._batches(plan):
            for chunk in batch:
                self._announce(chunk.sequence)
            drawn += self._compute(batch)
        self._emit(drawn)
        self._steps += bool(plan.decode or plan.prefill)
        return Step(events=self._take_events(), stats=self._take_stats())

    def _batches(self, plan: Plan) -> list[list[Chunk]]:
        """Return what is computed together.

        Flash attention on a CPU looks, for many rows at once, at every cell that any of them has:
        rows of decode beside a long part of a prompt cost more than both apart.
        """
        num_rows = sum(chunk.count for chunk in [*plan.decode, *plan.prefill])
        if num_rows <= self._backend.max_mixed_rows:
            return [[*plan.decode, *plan.prefill]] if num_rows else []
        return [batch for batch in (plan.decode, plan.prefill) if batch]

    def _token_limit(self, prompt: list[int], request: Submit) -> int:
        room = self._backend.max_length - len(prompt)
        return room if request.max_tokens is None else min(room, request.max_tokens)

    def _announce(self, sequence: Sequence) -> None:
        if not sequence.is_announced:
            sequence.is_announced = True
            self._events.append(started(sequence, sequence.is_resumable))

    def _compute(self, chunks: list[Chunk]) -> list[Draw]:
        """Compute a batch and draw from it; what fails in company is tried again alone."""
        chunks = [chunk for chunk in chunks if chunk.sequence.slot is not None]
        try:
            return self._sample(self._decode(chunks))
        except DecodeFailed as error:
            return self._compute_alone(chunks, error)

    def _compute_alone(self, chunks: list[Chunk], failure: DecodeFailed) -> list[Draw]:
        """After a failure: go back to where every sequence was, and try each by itself once.

        What fails again fails alone; raises DecodeFailed when nothing succeeds. Where a memory
        cannot go back, all begin again, and the second failure is raised: the next engine finds
        out who it was.
        """
        together = chunks
        chunks = [chunk for chunk in chunks if self._scheduler.roll_back(chunk.sequence)]
        if any(chunk.sequence.num_failures > 1 for chunk in together):
            raise failure
        drawn: list[Draw] = []
        failed: list[tuple[Sequence, DecodeFailed]] = []
        num_tried = 0
        for chunk in chunks:
            if chunk.sequence.slot is None:
                continue  # it gave way to one of those before
            num_tried += 1
            try:
                drawn += self._sample(self._decode([chunk]))
            except DecodeFailed as error:
                failed.append((chunk.sequence, error))
        if failed and len(failed) == num_tried:
            raise failed[0][1]
        for sequence, _ in failed:
            self.reject(Rejected(sequence.id, "failed", "the model failed on this sequence"))
            self._release(sequence, keep=False)
        return drawn

    def _decode(self, chunks: list[Chunk]) -> list[tuple[Chunk, int]]:
        """Compute the chunks; return each that was computed with its last row in the batch."""
        while chunks:
            rows: list[Row] = []
            ends: list[tuple[Chunk, int]] = []
            for chunk in chunks:
                rows += _rows(chunk)
                ends.append((chunk, len(rows) - 1))
            began = self._now()
            try:
                self._backend.decode(rows)
            except KVCacheFull:
                chunks = self._make_room(chunks)
                continue
            num_decode = sum(chunk.sequence.is_decoding for chunk in chunks)
            self._budget.observe(num_decode, len(rows) - num_decode, self._now() - began)
            self._scheduler.cache.stepped(len(rows))
            return ends
        return []

    def _make_room(self, chunks: list[Chunk]) -> list[Chunk]:
        """Evict or preempt, because llama.cpp found less room than was counted."""
        if self._scheduler.cache.evict(sum(chunk.count for chunk in chunks)) > 0:
            return chunks
        victim = self._scheduler.preempt()
        if victim is None:
            raise DecodeFailed("no cells for a sequence that is alone in the cache")
        return [chunk for chunk in chunks if chunk.sequence is not victim]

    def _sample(self, computed: list[tuple[Chunk, int]]) -> list[Draw]:
        """Draw a token for every sequence whose last token was computed."""
        drawn = []
        for chunk, row in computed:
            sequence = chunk.sequence
            can_draw = chunk.is_last
            if sequence.is_decoding:
                self._decode_tokens += 1
            else:
                self._prefill_tokens += chunk.count
            self._scheduler.computed(chunk)
            if not can_draw or sequence.sampler is None:
                continue
            try:
                drawn.append(_draw(sequence, sequence.sampler, row))
                sequence.num_failures = 0
            except LogitsNotFinite:
                self.reject(Rejected(sequence.id, "failed", "the model computed no finite logits"))
                self._release(sequence, keep=False)
        return drawn

    def _emit(self, drawn: list[Draw]) -> None:
        for draw in drawn:
            sequence, token = draw.sequence, draw.token
            sequence.append(token)
            text, reason = "", None
            if not draw.is_known:
                text, reason = read(self._backend, sequence, token, sequence.num_generated)
            num_shown = sequence.text.num_shown if draw.logprobs else 0
            tokens = [] if draw.is_known else [token]
            self._events.append(Output(sequence.id, tokens, text, reason, draw.logprobs, num_shown))
            if reason is not None:
                self._release(sequence)

    def _release(self, sequence: Sequence, keep: bool = True) -> None:
        self._scheduler.finish(sequence, keep)
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None
        del self._sequences[sequence.id]

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _take_stats(self) -> Stats:
        scheduler, cache = self._scheduler, self._scheduler.cache
        stats = Stats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            cells_used=scheduler.num_cells_used,
            cells_total=scheduler.num_cells,
            steps=self._steps,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            preemptions=scheduler.num_preemptions,
            cache_queries=cache.stats.queries,
            cache_hits=cache.stats.hits,
            cache_evictions=cache.stats.evictions,
            host_cache_hits=cache.stats.host_hits,
            cells_cached=cache.num_parked,
            host_cache_bytes=cache.host_bytes,
        )
        self._steps = self._prefill_tokens = self._decode_tokens = 0
        scheduler.num_preemptions = 0
        cache.stats = CacheStats()
        return stats


def _draw(sequence: Sequence, sampler: Sampler, row: int) -> Draw:
    is_known = bool(sequence.known)
    if is_known:
        token = sequence.known.popleft()
        sampler.accept(token)
    else:
        token = sampler.sample(row, sequence.num_generated)
    num_top = sequence.sampling.logprobs
    logprobs = [] if num_top is None else [sampler.logprobs(row, token, num_top)]
    return Draw(sequence, token, logprobs, is_known)


def _rows(chunk: Chunk) -> list[Row]:
    sequence = chunk.sequence
    assert sequence.slot is not None
    start = sequence.num_computed
    end = start + chunk.count
    return [
        Row(sequence.tokens[at], at, sequence.slot, chunk.is_last and at == end - 1)
        for at in range(start, end)
    ]
