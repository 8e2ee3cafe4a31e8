"""An engine process that the test plays itself, and a client over it with a clock of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import signal
from collections.abc import Callable

from kserve_llamacpp.engine_client.admission import QueueLimits
from kserve_llamacpp.engine_client.client import EngineClient
from kserve_llamacpp.engine_client.generation import Delta, Generation, Request
from kserve_llamacpp.engine_client.observers import EngineState
from kserve_llamacpp.engine_client.process import NotStarted
from kserve_llamacpp.engine_client.restarts import RestartPolicy, Restarts
from kserve_llamacpp.engine_client.watchdog import Watchdog
from kserve_llamacpp.wire.frames import (
    Cancel,
    Command,
    FinishReason,
    Hello,
    Logprobs,
    ModelFacts,
    Output,
    Report,
    SamplingParams,
    Started,
    Stats,
    Step,
    Submit,
    TokenLogprob,
)

FACTS = ModelFacts(
    description="tiny 1B Q8_0",
    architecture="tiny",
    num_parameters=1_000,
    size_bytes=1_000,
    n_vocab=258,
    n_ctx=64,
    n_ctx_train=64,
    max_sequences=4,
    chat_template="{{ messages[0].content }}",
    bos_token="<s>",  # noqa: S106 - a token of the vocabulary
    eos_token="</s>",  # noqa: S106 - as above
    fingerprint="fp_1",
    build="test",
    file_hash="file",
)
STATS = Stats(running=0, waiting=0, cells_used=0, cells_total=64)


async def settle() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


class FakeProcess:
    """Stands in for `EngineProcess`: keeps what the running engine was sent, reports and dies."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.num_runs = 0
        self.pid: int | None = None
        self.is_broken = False
        self.error = OSError(errno.EMFILE, "Too many open files")
        self.num_unread_bytes = 0
        self._on_report: Callable[[Report], None] | None = None
        self._end: asyncio.Future[int | None] | None = None

    async def run(self, on_report: Callable[[Report], None]) -> int | None:
        """Run until the test ends it."""
        if self.is_broken:
            raise NotStarted(self.error)
        self.num_runs += 1
        self.sent.clear()
        self.pid = 1000 + self.num_runs
        self._on_report = on_report
        self._end = asyncio.get_running_loop().create_future()
        try:
            return await self._end
        finally:
            self.pid = None

    def send(self, command: Command) -> None:
        """Keep a command; it is lost when nothing runs."""
        if self.pid is not None:
            self.sent.append(command)

    def report(self, report: Report) -> None:
        """Tell the client something."""
        assert self._on_report is not None
        self._on_report(report)

    def kill(self) -> None:
        """End the process, as SIGKILL does."""
        self.die(-signal.SIGKILL)

    def fail(self, error: Exception) -> None:
        """Have `run` raise this."""
        assert self._end is not None
        self._end.set_exception(error)

    def die(self, exit_status: int | None) -> None:
        """End the process."""
        assert self._end is not None
        self._end.set_result(exit_status)


class Observations:
    """Both observers of a client: keeps what it was told."""

    def __init__(self) -> None:
        self.states: list[EngineState] = []
        self.fractions: list[float] = []
        self.hangs: list[float] = []
        self.deaths: list[int | None] = []
        self.not_started: list[str] = []
        self.lost: list[str] = []
        self.guilty: list[tuple[str, int]] = []
        self.steps: list[Stats] = []
        self.refusals: list[str] = []
        self.queue_times: list[float] = []
        self.prompt_tokens: list[tuple[int, int]] = []
        self.first_tokens: list[float] = []
        self.next_tokens: list[float] = []
        self.ends: list[tuple[str, float]] = []

    def state_changed(self, state: EngineState) -> None:
        self.states.append(state)

    def loading(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def engine_hung(self, silent_seconds: float) -> None:
        self.hangs.append(silent_seconds)

    def engine_died(self, exit_status: int | None) -> None:
        self.deaths.append(exit_status)

    def engine_not_started(self, why: str) -> None:
        self.not_started.append(why)

    def engine_lost(self, why: str) -> None:
        self.lost.append(why)

    def request_guilty(self, request_id: str, num_deaths: int) -> None:
        self.guilty.append((request_id, num_deaths))

    def stepped(self, stats: Stats) -> None:
        self.steps.append(stats)

    def request_refused(self, code: str) -> None:
        self.refusals.append(code)

    def request_started(self, queue_seconds: float, prompt_tokens: int, cached_tokens: int) -> None:
        self.queue_times.append(queue_seconds)
        self.prompt_tokens.append((prompt_tokens, cached_tokens))

    def first_token(self, seconds: float) -> None:
        self.first_tokens.append(seconds)

    def next_token(self, seconds: float) -> None:
        self.next_tokens.append(seconds)

    def request_ended(self, reason: str, seconds: float) -> None:
        self.ends.append((reason, seconds))


class ClientRun:
    """A client, its fake process, and a clock that only the test and its sleeps move."""

    def __init__(
        self,
        max_waiting: int = 8,
        max_restarts: int = 5,
        max_waiting_tokens: int = 0,
        queue_timeout_seconds: float = 0,
        watchdog_seconds: float = 0,
        restarts: Restarts | None = None,
    ) -> None:
        self.process = FakeProcess()
        self.seen = Observations()
        self.now = 100.0
        self.sleeps: list[float] = []
        self.client = EngineClient(
            process=self.process,
            restarts=restarts or Restarts(RestartPolicy(max_restarts=max_restarts)),
            limits=QueueLimits(max_waiting, max_waiting_tokens, queue_timeout_seconds),
            observer=self.seen,
            requests=self.seen,
            watchdog=Watchdog(watchdog_seconds, max_step_tokens=1),
            is_ticking=False,
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def start(self) -> None:
        """Start the client; the process runs, the model is not loaded."""
        self.client.start()
        await settle()
        self.client.tick()

    async def ready(self) -> None:
        """Start the client and load the model."""
        await self.start()
        self.process.report(Hello(FACTS))

    async def pass_time(self, seconds: float) -> None:
        """Let the clock go on, with a tick every half second."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            self.client.tick()
        await settle()

    async def die(self, exit_status: int | None = -6) -> None:
        """End the process; the next one runs then, unless there are to be no more."""
        self.process.die(exit_status)
        await settle()

    async def die_and_come_back(self) -> None:
        """End the process; the next one has loaded the model."""
        await self.die()
        self.process.report(Hello(FACTS))

    def submit(
        self, prompt: str = "p", max_tokens: int | None = None, tenant: str = "", priority: int = 0
    ) -> Generation:
        """Submit a request with usual settings."""
        return self.submit_one(self.request(prompt, max_tokens, tenant, priority))

    def submit_one(self, request: Request) -> Generation:
        """Submit a request of one choice."""
        (generation,) = self.client.submit([request])
        return generation

    def submit_choices(self, count: int, prompt: str = "p", tenant: str = "") -> list[Generation]:
        """Submit a request of several choices."""
        request = self.request(prompt, tenant=tenant)
        return self.client.submit(
            [
                dataclasses.replace(request, sampling=SamplingParams(seed=1, choice=choice))
                for choice in range(count)
            ]
        )

    def request(
        self, prompt: str = "p", max_tokens: int | None = None, tenant: str = "", priority: int = 0
    ) -> Request:
        """Return a request with usual settings."""
        return Request(
            request_id=f"req-{prompt}",
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=SamplingParams(seed=1),
            tenant=tenant,
            priority=priority,
        )

    def tell(self, *events: Started | Output) -> None:
        """Report a step with these events."""
        self.process.report(Step(events=list(events), stats=STATS))

    def begin(self, *generations: Generation, cached_tokens: int = 0) -> None:
        """Report that requests have started, with a prompt of 3 tokens each."""
        self.tell(*(Started(g.id, 3, cached_tokens, cached_tokens, "hash") for g in generations))

    def give(
        self,
        generation: Generation,
        text: str,
        end: FinishReason | None = None,
        logprobs: list[float] | None = None,
        num_shown: int = 0,
    ) -> None:
        """Report a token for each character of a text, all in one step.

        With `logprobs` there is a token for each of them instead, the text's next or a control
        token; `num_shown` is told with them.
        """
        tokens = [ord(char) for char in text]
        entries = []
        for at, logprob in enumerate(logprobs or []):
            drawn = TokenLogprob(at, logprob, text[at : at + 1].encode())
            entries.append(Logprobs(drawn, [drawn]))
        if logprobs is not None:
            tokens = list(range(len(logprobs)))
        self.tell(Output(generation.id, tokens, text, end, entries, num_shown))

    def submitted(self) -> dict[int, Submit]:
        """Return what the running process was asked to begin, by id."""
        return {frame.id: frame for frame in self.process.sent if isinstance(frame, Submit)}

    def cancelled(self) -> list[int]:
        """Return the ids that the running process was asked to drop."""
        return [frame.id for frame in self.process.sent if isinstance(frame, Cancel)]


async def read(generation: Generation) -> str:
    """Return the whole text of a generation."""
    return "".join([delta.text async for delta in generation.deltas()])


async def read_deltas(generation: Generation) -> list[Delta]:
    """Return all deltas of a generation, as they come."""
    return [delta async for delta in generation.deltas()]
