"""Preemption, a full cache, broken logits, a failed batch: who is hit, and who is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_llamacpp.engine.backend import DecodeFailed, KVCacheFull
from kserve_llamacpp.engine.cache.snapshots import SnapshotCache
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import FakeBackend, letters_after
from tests.predictor.fake_memory import FakeMemory


def test_preempted_requests_get_what_they_get_alone() -> None:
    """A request that gives up its cells is computed anew and answers as if nothing had been."""
    run = EngineRun(num_cells=24)
    prompts = ["aaaa", "bbbb", "cccc"]
    ids = [run.submit(prompt, max_tokens=12) for prompt in prompts]
    run.finish()

    assert sum(stats.preemptions for stats in run.stats) >= 2
    assert [run.text(one) for one in ids] == [letters_after(prompt, 12) for prompt in prompts]


def test_the_oldest_is_never_preempted() -> None:
    """Whoever came first gets a token in each step, however little room there is."""
    run = EngineRun(num_cells=24)
    first = run.submit("aaaa", max_tokens=19)
    for prompt in ("bbbb", "cccc", "dddd"):
        run.submit(prompt, max_tokens=15)

    run.steps(19)

    assert run.reason(first) == "length"


def test_a_preempted_request_starts_once() -> None:
    """The start is told once, also when a sequence is computed a second time."""
    run = EngineRun(num_cells=12)
    ids = [run.submit(prompt, max_tokens=8) for prompt in ("aaaa", "bbbb")]
    run.finish()

    assert sum(stats.preemptions for stats in run.stats) > 0
    assert run.started == ids


@pytest.mark.parametrize("num_really", [12, 15, 18])
def test_less_room_than_was_counted_preempts_and_goes_on(num_really: int) -> None:
    """When llama.cpp finds no cells though the count says so, the youngest give way."""
    run = EngineRun(FakeBackend(num_cells=num_really, max_length=12), num_cells=64)
    prompts = ["aaaa", "bbb", "cc", "d"]
    ids = [run.submit(prompt, max_tokens=8) for prompt in prompts]
    run.finish()

    assert sum(stats.preemptions for stats in run.stats) > 0
    assert [run.text(one) for one in ids] == [letters_after(prompt, 8) for prompt in prompts]


def test_the_rest_of_a_full_batch_is_computed_in_the_same_step() -> None:
    """When the youngest gives way to a full cache, the others get their tokens in that step."""
    run = EngineRun()
    first = run.submit("a", max_tokens=9)
    second = run.submit("b", max_tokens=9)
    run.step()
    run.backend.faults.append(KVCacheFull())

    run.step()

    assert (len(run.tokens(first)), len(run.tokens(second))) == (2, 1)
    run.finish()
    assert run.text(second) == letters_after("b", 9)


def test_no_room_for_one_alone_is_a_failed_decode() -> None:
    """A cache that has no room for a sequence alone, twice, is broken: the engine gives up."""
    run = EngineRun()
    run.submit("a")
    run.backend.faults += [KVCacheFull(), KVCacheFull()]

    with pytest.raises(DecodeFailed):
        run.step()


def test_a_batch_that_fails_once_is_computed_one_by_one() -> None:
    """After a failure each sequence is tried alone, from where it was; nobody notices."""
    run = EngineRun()
    ids = [run.submit(prompt, max_tokens=5) for prompt in ("aaa", "bbb")]
    run.step()
    run.backend.faults.append(DecodeFailed("code -3"))
    run.finish()

    assert [run.text(one) for one in ids] == [letters_after("aaa", 5), letters_after("bbb", 5)]
    assert not run.rejections


def test_what_a_failed_batch_left_in_the_cache_is_taken_out() -> None:
    """A part of the batch may have been computed before it failed: its cells are dropped."""
    run = EngineRun()
    one = run.submit("aaa", max_tokens=5)
    run.step()
    run.backend.leave_behind = 1
    run.backend.faults.append(DecodeFailed("code -3"))
    run.finish()

    assert run.text(one) == letters_after("aaa", 5)


def test_a_sequence_that_fails_alone_fails_alone() -> None:
    """Whoever fails in company and alone gets an error; the others get their tokens."""
    run = EngineRun()
    bad = run.submit("bad", max_tokens=5)
    good = run.submit("good", max_tokens=5)
    run.step()
    run.backend.faults += [DecodeFailed("in company"), DecodeFailed("alone")]
    run.finish()

    assert run.rejections[bad].reason == "failed"
    assert run.text(good) == letters_after("good", 5)


def test_a_model_on_which_everything_fails_ends_the_engine() -> None:
    """When nothing can be computed any more, the error goes to the worker, which ends."""
    run = EngineRun()
    run.submit("a")
    run.submit("b")
    run.step()
    run.backend.faults += [DecodeFailed("code -3")] * 3

    with pytest.raises(DecodeFailed, match="code -3"):
        run.step()


def test_broken_logits_fail_one_request_alone() -> None:
    """A request whose logits are not finite fails; those in the same batch get their tokens."""
    run = EngineRun(FakeBackend(not_finite=["bad"]))
    before = run.submit("a", max_tokens=5)
    bad = run.submit("bad", max_tokens=5)
    after = run.submit("c", max_tokens=5)
    run.finish()

    assert run.rejections[bad].reason == "failed"
    assert list(run.rejections) == [bad]
    assert [run.text(one) for one in (before, after)] == [
        letters_after("a", 5),
        letters_after("c", 5),
    ]


def test_a_failed_request_says_nothing_of_the_inside() -> None:
    """The text of a failure holds neither tokens nor addresses, only what failed."""
    run = EngineRun(FakeBackend(not_finite=["bad"]))
    bad = run.submit("bad")
    run.finish()

    assert run.rejections[bad].message == "the model computed no finite logits"


def test_preemptions_are_told_once() -> None:
    """The count of preemptions starts anew with each frame, as the other counters do."""
    run = EngineRun(num_cells=12)
    for prompt in ("aaaa", "bbbb"):
        run.submit(prompt, max_tokens=8)
    run.finish()

    assert [stats.preemptions for stats in run.stats if stats.preemptions] == [1]


@given(
    prompts=st.lists(st.text(alphabet="xyz", min_size=1, max_size=10), min_size=2, max_size=5),
    num_cells=st.integers(min_value=20, max_value=48),
    step_tokens=st.integers(min_value=4, max_value=16),
    beside=st.integers(min_value=1, max_value=8),
)
def test_any_amount_of_room_gives_the_same_answers(
    prompts: list[str], num_cells: int, step_tokens: int, beside: int
) -> None:
    """Cells, budgets and chunk sizes decide when tokens come, never which."""
    run = EngineRun(
        num_cells=num_cells, step_tokens=step_tokens, prefill_tokens_beside_decode=beside
    )
    ids = [run.submit(prompt, max_tokens=9) for prompt in prompts]
    run.finish()

    assert [run.text(one) for one in ids] == [letters_after(prompt, 9) for prompt in prompts]


def test_a_memory_that_cannot_go_back_does_not_fail_for_ever() -> None:
    """Where cells cannot be cut, all begin again once; a second failure is told, not repeated."""
    memory = FakeMemory(64, num_slots=4, can_cut=False)
    cache = SnapshotCache(memory, 64, 0, can_cut=False)
    run = EngineRun(FakeBackend(memory=memory), cache=cache)
    ids = [run.submit(prompt, max_tokens=5) for prompt in ("aaa", "bbb")]
    run.step()
    run.backend.faults.append(DecodeFailed("once"))
    run.finish()

    assert [run.text(one) for one in ids] == [letters_after("aaa", 5), letters_after("bbb", 5)]

    run.submit("ccc", max_tokens=5)
    run.backend.faults += [DecodeFailed("first"), DecodeFailed("second")]
    run.step()
    with pytest.raises(DecodeFailed, match="second"):
        run.step()
