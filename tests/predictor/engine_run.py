"""An engine over the fake backend, driven step by step and checked after each."""

from __future__ import annotations

from kserve_llamacpp.engine.cache.memory import KVCache
from kserve_llamacpp.engine.cache.snapshots import SnapshotCache
from kserve_llamacpp.engine.engine import Engine
from kserve_llamacpp.engine.schedule.fair_queue import FairQueue
from kserve_llamacpp.engine.schedule.scheduler import Scheduler
from kserve_llamacpp.engine.schedule.step_budget import FixedBudget
from kserve_llamacpp.engine.text.shared_texts import SharedTexts
from kserve_llamacpp.wire.frames import (
    FinishReason,
    Output,
    Rejected,
    SamplingParams,
    SharedText,
    SharePrompts,
    Started,
    Stats,
    Step,
    Submit,
)
from tests.predictor.fake_backend import FakeBackend


def _bytes(request: Submit) -> list[int]:
    """Return what the fake backend makes of a text."""
    assert isinstance(request.prompt, str)
    return list(request.prompt.encode())


class SharedBudget(FixedBudget):
    """Steps of the same size, of which prompts get so many tokens beside decode."""

    def __init__(self, step_tokens: int, beside_decode: int) -> None:
        super().__init__(step_tokens)
        self._beside_decode = beside_decode

    def prefill_tokens(self, num_decoding: int) -> int:
        """Return how many prompt tokens a step takes."""
        budget = super().prefill_tokens(num_decoding)
        return min(budget, self._beside_decode) if num_decoding else budget


class Steps:
    """Runs an engine step by step; how a step is run, and what is kept of it, is its own."""

    engine: Engine

    def step(self) -> object:
        """Run one step."""
        raise NotImplementedError

    def steps(self, count: int) -> None:
        """Run some steps."""
        for _ in range(count):
            self.step()

    def run_out(self, max_steps: int) -> None:
        """Run until there is nothing left to do."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, f"still at work after {max_steps} steps"


class EngineRun(Steps):
    """Runs one engine and keeps what it told; every step checks the cells, slots and samplers."""

    def __init__(
        self,
        backend: FakeBackend | None = None,
        num_cells: int = 64,
        max_sequences: int = 4,
        step_tokens: int = 16,
        prefill_tokens_beside_decode: int = 4,
        cache: KVCache | None = None,
        own_length: int = 0,
    ) -> None:
        """Without a `cache` nothing that was computed is kept."""
        self.backend = backend or FakeBackend(num_cells=num_cells)
        self.cache = cache or SnapshotCache(self.backend.memory, num_cells, 0, can_cut=True)
        self.scheduler = Scheduler(max_sequences, self.cache, FairQueue(), own_length=own_length)
        self.budget = SharedBudget(step_tokens, prefill_tokens_beside_decode)
        self.now = 0.0
        self.engine = Engine(self.backend, self.scheduler, self.budget, lambda: self.now)
        self.stats: list[Stats] = []
        self.started: list[int] = []
        self.starts: dict[int, Started] = {}
        self.cached: dict[int, int] = {}
        self.own_cached: dict[int, int] = {}
        self.outputs: dict[int, list[Output]] = {}
        self.rejections: dict[int, Rejected] = {}
        self._next_id = 1

    def submit(
        self,
        prompt: str | list[int],
        max_tokens: int | None = None,
        stops: list[str] | None = None,
        resume: list[int] | None = None,
        add_special: bool = False,
        tenant: str = "",
        priority: int = 0,
        cache_salt: str = "",
        is_apart: bool = False,
        owner: str = "",
        sampling: SamplingParams | None = None,
        ended: FinishReason | None = None,
        num_scored: int = 0,
        is_resumable: bool = False,
    ) -> int:
        """Submit a request; return its id."""
        new_id = self._next_id
        self._next_id += 1
        self.outputs[new_id] = []
        self.engine.submit(
            Submit(
                id=new_id,
                request_id=f"req-{new_id}",
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=sampling or SamplingParams(),
                stops=stops or [],
                resume=resume or [],
                add_special=add_special,
                tenant=tenant,
                priority=priority,
                cache_salt=cache_salt,
                is_apart=is_apart,
                owner=owner,
                ended=ended,
                num_scored=num_scored,
                is_resumable=is_resumable,
            )
        )
        return new_id

    def share(self, *prompts: str) -> list[int]:
        """Name prompts that all may share."""
        command = SharePrompts([SharedText(prompt, False) for prompt in prompts])
        texts = SharedTexts(command)
        results = [self.engine.prompts.with_tokens(r, _bytes(r)) for r in texts.requests]
        assert [texts.take(result) for result in results][-1]
        return self.engine.share_prompts(command, texts.tokens)

    def step(self) -> Step:
        """Run one step, keep its events, check that everything is accounted for."""
        step = self.engine.step()
        self.stats.append(step.stats)
        for event in step.events:
            match event:
                case Started(id=id):
                    assert id not in self.started, "started twice"
                    self.started.append(id)
                    self.starts[id] = event
                    self.cached[id] = event.cached_tokens
                    self.own_cached[id] = event.own_cached_tokens
                    assert event.own_cached_tokens <= event.cached_tokens
                case Output(id=id):
                    assert id in self.started, "output before the start"
                    assert not self.is_done(id), "output after the end"
                    self.outputs[id].append(event)
                case Rejected(id=id):
                    assert not self.is_done(id), "rejected after the end"
                    self.rejections[id] = event
        self.check_integrity()
        return step

    def finish(self, max_steps: int = 500) -> None:
        """Run until there is nothing left to do; check that nothing is left behind."""
        self.run_out(max_steps)
        self.assert_empty()

    def check_integrity(self) -> None:
        """Check that the backend's cells are the scheduler's, each slot's and together."""
        self.scheduler.check_integrity()
        assert self.backend.num_cells_used == self.scheduler.num_cells_used + self.cache.num_parked
        waiting_and_running = self.scheduler.num_waiting + self.scheduler.num_running
        num_open = self.backend.num_open_samplers - waiting_and_running
        assert 0 <= num_open <= self.engine.num_preparing

    def assert_empty(self) -> None:
        """Check that nothing runs, waits or is held."""
        self.check_integrity()
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert self.scheduler.num_cells_used == self.backend.num_open_samplers == 0

    def text(self, id: int) -> str:
        """Return the text that a request got so far."""
        return "".join(output.text for output in self.outputs[id])

    def tokens(self, id: int) -> list[int]:
        """Return the tokens that a request got so far."""
        return [token for output in self.outputs[id] for token in output.tokens]

    def reason(self, id: int) -> str | None:
        """Return why a request ended, None while it runs."""
        return self.outputs[id][-1].finish_reason if self.outputs[id] else None

    def is_done(self, id: int) -> bool:
        """Whether a request was told its end."""
        return id in self.rejections or self.reason(id) is not None

    def slots_of_last_batch(self) -> list[int]:
        """Return the slot of each row of the batch computed last, in order."""
        return [row.slot for row in self.backend.batches[-1]]
