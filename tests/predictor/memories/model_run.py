"""An engine over a real model in this process, driven step by step and checked after each."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog.testing

from kserve_llamacpp.engine.assembly import make_engine
from kserve_llamacpp.engine.backend import DecodeFailed, Row
from kserve_llamacpp.engine.llama import LlamaBackend, LoadOptions
from kserve_llamacpp.engine.schedule.scheduler import Scheduler
from kserve_llamacpp.wire.frames import (
    Output,
    Rejected,
    SamplingParams,
    SharedText,
    SharePrompts,
    Started,
    Stats,
    Submit,
    TokenLogprob,
)
from kserve_llamacpp.wire.worker_options import KVCacheLayout, WorkerOptions
from tests.predictor.engine_run import Steps

SLOTS = 4
STEP_TOKENS = 512
_WORDS = ["river", "stone", "garden", "window", "letter", "winter", "bridge", "engine"]


class RecordingBackend(LlamaBackend):
    """The real backend; it keeps the slots of each batch, and fails where a test wants it.

    `faults` holds, for each batch from now on, how many of its rows are computed before it fails;
    None lets it succeed.
    """

    def __init__(
        self, path: Path, n_ctx: int, kv_cache: KVCacheLayout, is_exact: bool, flash_attn: bool
    ) -> None:
        """`is_exact` asks for the KV cache of deterministic mode."""
        attention = "on" if flash_attn else "auto"
        options = LoadOptions(path, n_ctx, STEP_TOKENS, 1, 0, SLOTS, kv_cache, is_exact, attention)
        super().__init__(options, lambda _fraction: None, _fail_on_error)
        self.batches: list[list[int]] = []
        self.faults: deque[int | None] = deque()

    def decode(self, rows: list[Row]) -> None:
        """Compute a batch, or a part of it and fail."""
        num_computed = self.faults.popleft() if self.faults else None
        if num_computed is not None:
            if num_computed:
                super().decode(rows[:num_computed])  # at most: a batch may be smaller
            raise DecodeFailed("as the test wants it")
        super().decode(rows)
        self.batches.append([row.slot for row in rows])


class Answer:
    """What a request got; `logprobs` of its own tokens and of the likeliest, to the last bit."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.logprobs: list[tuple[TokenLogprob, ...]] = []
        self.cached: int | None = None
        self.reason: str | None = None

    @property
    def content(self) -> tuple[list[int], str, list[tuple[TokenLogprob, ...]], str | None]:
        """All that must be the same in any company."""
        return self.tokens, self.text, self.logprobs, self.reason


class ModelRun(Steps):
    """Runs one engine, from an empty memory on, and keeps what it told; steps are checked."""

    def __init__(
        self,
        backend: RecordingBackend,
        is_deterministic: bool = False,
        host_cache_mib: int = 64,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """With the default clock all is free: steps are large, and nothing parked is given up."""
        self.backend = backend
        backend.memory.clear()
        options = WorkerOptions(
            model_path="",
            n_ctx=0,
            n_batch=STEP_TOKENS,
            n_threads=1,
            n_gpu_layers=0,
            max_sequences=SLOTS,
            kv_cache="unified",
            is_deterministic=is_deterministic,
            host_cache_mib=host_cache_mib,
            target_step_ms=200,
            log_level="info",
            log_format="json",
        )
        with structlog.testing.capture_logs() as logs:
            self.engine = make_engine(backend, options, clock)
        self.logs = logs
        self.scheduler: Scheduler = self.engine._scheduler
        self.answers: dict[int, Answer] = {}
        self.stats: list[Stats] = []
        backend.batches.clear()

    def submit(
        self,
        prompt: list[int],
        max_tokens: int = 16,
        sampling: SamplingParams | None = None,
        resume: list[int] | None = None,
        tenant: str = "",
        num_top: int = 2,
        cache_salt: str = "",
    ) -> Answer:
        """Submit a request; return its answer, which grows with the steps."""
        new_id = len(self.answers) + 1
        answer = self.answers[new_id] = Answer()
        self.engine.submit(
            Submit(
                id=new_id,
                request_id=f"req-{new_id}",
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=_with_logprobs(sampling or SamplingParams(temperature=0), num_top),
                resume=resume or [],
                tenant=tenant,
                cache_salt=cache_salt,
            )
        )
        return answer

    def share(self, prompt: list[int]) -> None:
        """Name a prompt that all may share."""
        command = SharePrompts([SharedText("named", add_special=False)])
        self.engine.share_prompts(command, lambda _: prompt)

    def step(self) -> None:
        """Run one step, keep its events, check that everything is accounted for."""
        step = self.engine.step()
        self.stats.append(step.stats)
        for event in step.events:
            assert not isinstance(event, Rejected), event.message
            answer = self.answers[event.id]
            if isinstance(event, Started):
                answer.cached = event.cached_tokens
            elif isinstance(event, Output):
                answer.tokens += event.tokens
                answer.text += event.text
                answer.logprobs += [(each.drawn, *each.top) for each in event.logprobs]
                answer.reason = event.finish_reason
        self.scheduler.check_integrity()

    def finish(self, max_steps: int = 3000) -> None:
        """Run until there is nothing left to do."""
        self.run_out(max_steps)
        assert all(answer.reason is not None for answer in self.answers.values())

    def ask(self, prompt: list[int], max_tokens: int = 16) -> Answer:
        """Submit a request and run until its end."""
        answer = self.submit(prompt, max_tokens)
        self.finish()
        return answer

    def total(self, counter: str) -> int:
        """Return the sum of one of the statistics."""
        return sum(getattr(stats, counter) for stats in self.stats)

    @property
    def has_passed_the_self_test(self) -> bool:
        """Whether the engine said that its model computes the same bits in any company."""
        return [entry["event"] for entry in self.logs] == ["self_test_passed", "prefix_cache"]


Load = Callable[..., RecordingBackend]


def words(seed: int, num_tokens: int) -> list[int]:
    """Return so many tokens (bytes) of a text of its own."""
    rng = random.Random(seed)
    text = " ".join(rng.choice(_WORDS) for _ in range(num_tokens))
    return list(text.encode()[:num_tokens])


def _fail_on_error(level: str, line: str) -> None:
    assert level != "error", line


def _with_logprobs(sampling: SamplingParams, num_top: int) -> SamplingParams:
    return msgspec.structs.replace(sampling, logprobs=num_top, ignore_eos=True)
