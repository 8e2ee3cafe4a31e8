"""An engine over the fake backend, driven step by step and checked after each."""

from __future__ import annotations

from kserve_llamacpp.engine.engine import Engine
from kserve_llamacpp.engine.frames import (
    Output,
    Rejected,
    SamplingParams,
    Started,
    Stats,
    Step,
    Submit,
)
from kserve_llamacpp.engine.scheduler import Limits, Scheduler
from tests.predictor.fake_backend import FakeBackend


class EngineRun:
    """Runs one engine and keeps what it told; every step checks the cells, slots and samplers."""

    def __init__(
        self,
        backend: FakeBackend | None = None,
        num_cells: int = 64,
        max_sequences: int = 4,
        step_tokens: int = 16,
        prefill_tokens_beside_decode: int = 4,
    ) -> None:
        self.backend = backend or FakeBackend(num_cells=num_cells)
        self.scheduler = Scheduler(
            Limits(num_cells, max_sequences, step_tokens, prefill_tokens_beside_decode)
        )
        self.engine = Engine(self.backend, self.scheduler)
        self.stats: list[Stats] = []
        self.started: list[int] = []
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
                sampling=SamplingParams(),
                stops=stops or [],
                resume=resume or [],
                add_special=add_special,
            )
        )
        return new_id

    def step(self) -> Step:
        """Run one step, keep its events, check that everything is accounted for."""
        step = self.engine.step()
        self.stats.append(step.stats)
        for event in step.events:
            match event:
                case Started(id=id):
                    assert id not in self.started, "started twice"
                    self.started.append(id)
                case Output(id=id):
                    assert id in self.started, "output before the start"
                    assert not self.is_done(id), "output after the end"
                    self.outputs[id].append(event)
                case Rejected(id=id):
                    assert not self.is_done(id), "rejected after the end"
                    self.rejections[id] = event
        self.check_integrity()
        return step

    def steps(self, count: int) -> None:
        """Run some steps."""
        for _ in range(count):
            self.step()

    def finish(self, max_steps: int = 500) -> None:
        """Run until there is nothing left to do; check that nothing is left behind."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, f"still at work after {max_steps} steps"
        self.assert_empty()

    def check_integrity(self) -> None:
        """Check that the backend's cells are the scheduler's, each slot's and together."""
        self.scheduler.check_integrity()
        assert self.backend.num_cells_used == self.scheduler.num_cells_used
        waiting_and_running = self.scheduler.num_waiting + self.scheduler.num_running
        assert self.backend.num_open_samplers == waiting_and_running

    def assert_empty(self) -> None:
        """Check that nothing runs, waits or is held."""
        self.check_integrity()
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert self.backend.num_cells_used == self.backend.num_open_samplers == 0

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
