"""Requests that resume many tokens are prepared between the steps of others."""

from __future__ import annotations

from kserve_llamacpp.engine.preparations import Preparation, Preparations
from kserve_llamacpp.wire.frames import SamplingParams
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import FakeBackend

RESUMED = [ord("a")] * 2000


class TickingRun(EngineRun):
    """An engine whose every look at the clock takes a millisecond."""

    _ticks = 0

    @property
    def now(self) -> float:  # type: ignore[override]  # a clock of its own
        """The time, which passes by being asked for."""
        self._ticks += 1
        return self._ticks / 1000

    @now.setter
    def now(self, _: float) -> None:
        pass


def begin() -> tuple[TickingRun, int]:
    """Return an engine in which a stream runs, and the stream."""
    run = TickingRun(FakeBackend(num_cells=5000), num_cells=5000, step_tokens=3000)
    stream = run.submit("stream", max_tokens=4000)
    run.step()
    return run, stream


def test_others_get_tokens_meanwhile() -> None:
    """Each step prepares a few parts of it; a running stream gets its token in each of them."""
    run, stream = begin()
    before = len(run.tokens(stream))
    resumed = run.submit("long", resume=RESUMED, max_tokens=len(RESUMED) + 1)
    num_steps = 0
    while not run.is_done(resumed):
        run.step()
        num_steps += 1
    assert num_steps > 8
    assert len(run.tokens(stream)) == before + num_steps
    assert len(run.tokens(resumed)) == 1


def test_a_cancelled_one_leaves_nothing() -> None:
    """At any time while it is prepared it can be cancelled; its sampler is freed with it."""
    for steps in range(12):
        run, _ = begin()
        resumed = run.submit("long", resume=RESUMED)
        run.steps(steps)
        run.engine.cancel(resumed)
        assert run.engine.num_preparing == 0
        assert run.backend.num_open_samplers == 1
        run.steps(3)
        assert resumed not in run.started


def test_a_resumed_end_is_told_when_it_is_found() -> None:
    """Many tokens that end in the last one are prepared in parts, too, and then told as ended."""
    run, _ = begin()
    resumed = run.submit("long", resume=RESUMED, max_tokens=len(RESUMED))
    run.step()
    assert not run.is_done(resumed)
    run.steps(60)
    assert run.reason(resumed) == "length"


def test_the_shown_text_is_whole() -> None:
    """Where logprobs are wanted, the text of all resumed tokens is told with the start."""
    run, _ = begin()
    sampling = SamplingParams(logprobs=0)
    resumed = run.submit("long", resume=RESUMED, sampling=sampling, max_tokens=len(RESUMED) + 1)
    while not run.is_done(resumed):
        run.step()
    assert run.starts[resumed].shown_text == b"a" * len(RESUMED)
    assert run.starts[resumed].num_shown == len(RESUMED)


def test_tenants_take_turns() -> None:
    """A tenant with many requests keeps no other's waiting: the other's is prepared beside them."""
    done: list[str] = []

    def preparation(name: str, num_parts: int) -> Preparation:
        for _ in range(num_parts):
            yield
        done.append(name)

    preparations = Preparations(lambda: 0.0)
    for number in range(3):
        preparations.put(number, "a", preparation(f"a{number}", 4))
    preparations.put(3, "b", preparation("b", 5))
    preparations.drop(1)
    assert len(preparations) == 3
    preparations.run(1.0)
    assert done == ["a0", "b", "a2"]


class SlowBackend(FakeBackend):
    """A vocabulary that takes 0.1 ms to tell a token's text."""

    seconds = 0.0

    def piece(self, token: int) -> bytes:
        """Return the byte, after a while."""
        self.seconds += 0.0001
        return super().piece(token)


def test_no_step_is_held_up_for_long() -> None:
    """Resumed tokens that take half a second to read hold up no step for a hundredth."""
    backend = SlowBackend(num_cells=12_000)
    run = EngineRun(backend, num_cells=12_000, step_tokens=8000)
    run.engine._preparations._now = lambda: backend.seconds
    stream = run.submit("stream", max_tokens=1000)
    run.step()
    began = backend.seconds
    resumed = run.submit("long", resume=[ord("a")] * 5000, max_tokens=5001)
    longest = backend.seconds - began
    while not run.is_done(resumed):
        began = backend.seconds
        run.step()
        longest = max(longest, backend.seconds - began)
    assert backend.seconds > 0.5
    assert longest < 0.01
    assert len(run.tokens(stream)) > 50
