"""Short texts are tokenized at once, others in processes of their own, tenants in turn."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from kserve_llamacpp.engine.prompt_reader import PromptReader
from kserve_llamacpp.engine.text.text_bounds import TextBounds
from kserve_llamacpp.engine.text.text_queue import Failure
from kserve_llamacpp.engine.text.tokenizer import Tokenizer
from kserve_llamacpp.wire.frames import Rejected, Submit
from tests.predictor.engine.text.tokenizing import ShortTexts, submit

BOUNDS = TextBounds(short_bytes=10, short_specials=1, special_starts=b"<", longest_tokens=[4] * 256)
LONG = "long text " * 10


class FakeJob:
    """A text that is tokenized when the test says so."""

    def __init__(self, data: bytes) -> None:
        self.text = data.decode()
        self.is_closed = False
        self._outcome: list[int] | Failure | None = None
        self._reader, self._writer = socket.socketpair()

    def fileno(self) -> int:
        return self._reader.fileno()

    def end(self, outcome: list[int] | Failure) -> None:
        self._outcome = outcome
        self._writer.send(b"x")

    def result(self) -> list[int] | Failure | None:
        return self._outcome

    def close(self) -> None:
        self.is_closed = True
        self._reader.close()
        self._writer.close()


class FakeTokenizerProcess:
    """A process that tells the bounds when the test says so, and lives until it says otherwise."""

    def __init__(self) -> None:
        self.bounds: TextBounds | None = None
        self.jobs: list[FakeJob] = []
        self._is_alive = True
        self._reader, self._writer = socket.socketpair()

    def fileno(self) -> int:
        return self._reader.fileno()

    def tell(self, bounds: TextBounds | None) -> None:
        """Tell the bounds, or (None) die."""
        self._is_alive = bounds is not None
        self.bounds = bounds
        self._writer.send(b"x")

    def is_alive(self) -> bool:
        self._reader.recv(1)
        return self._is_alive

    def start(self, data: bytes, add_special: bool, longest: int, is_long: bool) -> FakeJob:
        self.jobs.append(FakeJob(data))
        return self.jobs[-1]

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class TokenizerRun:
    """A tokenizer over fake processes, and a clock that the test moves."""

    all: ClassVar[list[TokenizerRun]] = []

    def __init__(self, bounds: TextBounds | None = BOUNDS, max_length: int = 1000) -> None:
        self.all.append(self)
        self.now = 0.0
        self.texts = ShortTexts(max_length=max_length)
        self.processes: list[FakeTokenizerProcess] = []
        start: Callable[[], FakeTokenizerProcess] = self._start
        self.tokenizer = Tokenizer(PromptReader(self.texts), start, lambda: self.now)  # type: ignore[arg-type]  # as much of one as is used
        if bounds is not None:
            self.processes[0].tell(bounds)
            assert self.tokenizer.collect() == []

    def _start(self) -> FakeTokenizerProcess:
        self.processes.append(FakeTokenizerProcess())
        return self.processes[-1]

    @property
    def jobs(self) -> list[FakeJob]:
        """All texts that the latest process was given."""
        return self.processes[-1].jobs

    def close(self) -> None:
        """Close all sockets."""
        self.tokenizer.close()
        for process in self.processes:
            process.close()
            for job in process.jobs:
                job.close()

    def prompts(self) -> dict[int, object]:
        """Collect the results: token ids, or the reason of a refusal."""
        return {
            result.id: result.prompt if isinstance(result, Submit) else result.reason
            for result in self.tokenizer.collect()
        }


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while TokenizerRun.all:
        TokenizerRun.all.pop().close()


def test_a_short_text_needs_no_process() -> None:
    """What is known to be short is tokenized at once; one byte more is not."""
    run = TokenizerRun()
    run.tokenizer.put(submit(1, "0123456789"))
    run.tokenizer.put(submit(2, "0123456789a"))
    assert run.prompts() == {1: [10]}
    assert [job.text for job in run.jobs] == ["0123456789a"]
    run.jobs[0].end([7, 8])
    assert run.prompts() == {2: [7, 8]}
    assert run.jobs[0].is_closed
    assert not run.tokenizer.is_busy


def test_what_cannot_fit_is_not_tokenized() -> None:
    """A text that certainly has too many tokens is refused before anybody works on it."""
    run = TokenizerRun(max_length=24)
    run.tokenizer.put(submit(1, "x" * 97))
    run.tokenizer.put(submit(2, "x" * 96))
    assert run.prompts() == {1: "context_length"}
    assert [job.text for job in run.jobs] == ["x" * 96]
    run.jobs[0].end(Failure.TOO_LONG)
    assert run.prompts() == {2: "context_length"}


def test_until_the_bounds_are_known_texts_wait() -> None:
    """Nobody knows what is short before the process has told it."""
    run = TokenizerRun(bounds=None)
    run.tokenizer.put(submit(1, "short"))
    run.tokenizer.put(submit(2, LONG))
    assert run.prompts() == {}
    assert run.jobs == run.texts.short == []
    run.processes[0].tell(BOUNDS)
    assert run.prompts() == {1: [5]}
    assert len(run.jobs) == 1


def test_choices_share_a_text() -> None:
    """The choices of a request are tokenized once, those that come later too; others' are not."""
    run = TokenizerRun()
    for number in (1, 2):
        run.tokenizer.put(submit(number, LONG, request_id="r"))
    assert len(run.jobs) == 1
    run.jobs[0].end([1, 2])
    results = run.tokenizer.collect()
    run.tokenizer.put(submit(3, LONG, request_id="r"))
    results += run.tokenizer.collect()
    prompts = [result.prompt for result in results if isinstance(result, Submit)]
    assert len(prompts) == 3
    assert all(prompt is prompts[0] for prompt in prompts)
    run.tokenizer.put(submit(4, LONG, request_id="another"))
    assert len(run.jobs) == 2


def test_a_text_that_ends_its_process_is_refused() -> None:
    """Its choices get a 400 that names the prompt; the text is not tried again, nor are others."""
    run = TokenizerRun()
    run.tokenizer.put(submit(1, LONG))
    run.tokenizer.put(submit(2, LONG + "!"))
    run.jobs[0].end(Failure.UNREADABLE)
    run.jobs[1].end([1])
    (first, second) = run.tokenizer.collect()
    assert isinstance(first, Rejected)
    assert first.reason == "unreadable_prompt"
    assert "cannot read this prompt" in first.message
    assert isinstance(second, Submit)
    assert len(run.jobs) == 2


def test_one_tenants_long_texts_keep_no_other_waiting() -> None:
    """While a tenant's text is tokenized, another tenant's begins; the tenant's own next waits."""
    run = TokenizerRun()
    for number, tenant in enumerate(["a", "a", "b"]):
        run.tokenizer.put(submit(number, f"{number}" * 70_000, tenant))
    run.texts.max_length = 1 << 20
    assert run.prompts() == {0: "context_length", 1: "context_length", 2: "context_length"}
    for number, tenant in enumerate(["a", "a", "b"], 3):
        run.tokenizer.put(submit(number, f"{number}" * 70_000, tenant))
    assert [job.text[0] for job in run.jobs] == ["3", "5"]
    run.jobs[0].end([1])
    assert run.prompts() == {3: [1]}
    assert [job.text[0] for job in run.jobs] == ["3", "5", "4"]


def test_a_forgotten_request_is_not_collected() -> None:
    """Once its last choice was cancelled a text is not tokenized further, and nothing comes."""
    run = TokenizerRun()
    for number in (1, 2):
        run.tokenizer.put(submit(number, LONG, request_id="r"))
    run.tokenizer.forget(1)
    assert not run.jobs[0].is_closed
    run.tokenizer.forget(2)
    assert run.jobs[0].is_closed
    run.tokenizer.put(submit(3, "short"))
    run.tokenizer.forget(3)
    assert run.prompts() == {}
    assert not run.tokenizer.is_busy


def test_a_dead_process_is_replaced() -> None:
    """Texts that nobody had begun with go to the next one, which starts after a growing pause."""
    run = TokenizerRun()
    run.tokenizer.put(submit(1, LONG))
    run.jobs[0].end(Failure.LOST)
    run.processes[0].tell(None)
    assert run.prompts() == {}
    run.tokenizer.put(submit(2, "short"))
    assert run.prompts() == {2: [5]}
    assert len(run.processes) == 1
    run.now = 0.5
    assert run.prompts() == {}
    assert len(run.processes) == 2
    run.processes[1].tell(None)
    assert run.prompts() == {}
    run.now = 1.0
    assert run.prompts() == {}
    assert len(run.processes) == 2
    run.now = 1.6
    assert run.prompts() == {}
    assert len(run.processes) == 3


def test_a_text_is_lost_three_times_at_most() -> None:
    """Then its request fails, as one that the engine failed on."""
    run = TokenizerRun()
    run.tokenizer.put(submit(1, LONG))
    for number in range(3):
        run.jobs[number].end(Failure.LOST)
        result = run.prompts()
    assert result == {1: "failed"}


def test_a_text_that_cannot_be_handed_over_is_tried_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Descriptors or memory may be used up for a moment: the request does not fail for it."""
    run = TokenizerRun()
    start = run.processes[0].start

    def refuse(*args: object) -> FakeJob:
        raise OSError("too many open files")

    monkeypatch.setattr(run.processes[0], "start", refuse)
    run.tokenizer.put(submit(1, LONG))
    for _ in range(9):
        assert run.prompts() == {}
    monkeypatch.setattr(run.processes[0], "start", start)
    run.now += 0.5
    assert run.prompts() == {}
    run.jobs[0].end([1, 2])
    assert run.prompts() == {1: [1, 2]}
