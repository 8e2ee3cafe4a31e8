"""Cancelling frees a sequence before the next batch, in whatever state it is."""

from __future__ import annotations

from tests.predictor.engine_run import EngineRun


def test_a_running_sequence_is_freed_before_the_next_batch() -> None:
    """A cancelled decoder holds neither slot nor cells, and no row of the next batch."""
    run = EngineRun()
    gone = run.submit("a" * 5)
    stays = run.submit("b")
    run.step()
    slot = next(row.slot for row in run.backend.batches[0] if row.token == ord("a"))

    run.engine.cancel(gone)

    run.check_integrity()
    assert run.backend.num_cells_used == 1
    run.step()
    assert slot not in run.slots_of_last_batch()
    assert len(run.tokens(gone)) == 1
    assert len(run.tokens(stays)) == 2


def test_a_half_filled_prompt_is_freed() -> None:
    """A sequence that is cancelled while its prompt is prefilled leaves no cells."""
    run = EngineRun(step_tokens=4)
    one = run.submit("x" * 20)
    run.steps(2)
    assert run.backend.num_cells_used == 8

    run.engine.cancel(one)

    run.assert_empty()
    assert run.outputs[one] == []


def test_a_waiting_sequence_leaves_the_queue() -> None:
    """A cancelled request that waits is never started, and those behind it move up."""
    run = EngineRun(max_sequences=1)
    first = run.submit("a", max_tokens=2)
    gone = run.submit("b")
    last = run.submit("c", max_tokens=2)
    run.step()

    run.engine.cancel(gone)
    run.finish()

    assert run.started == [first, last]


def test_a_preempted_sequence_leaves_the_queue() -> None:
    """A sequence that gave up its cells can be cancelled while it waits to come back."""
    run = EngineRun(num_cells=12)
    stays = run.submit("a" * 4, max_tokens=8)
    gone = run.submit("b" * 4)
    while not run.stats or not run.stats[-1].preemptions:
        run.step()
    assert run.scheduler.num_waiting == 1

    run.engine.cancel(gone)

    assert run.scheduler.num_waiting == 0
    run.finish()
    assert run.reason(stays) == "length"


def test_after_the_end_and_for_the_unknown_it_does_nothing() -> None:
    """A cancel that comes too late, twice, or for nobody, changes nothing."""
    run = EngineRun()
    done = run.submit("a", max_tokens=1)
    twice = run.submit("b")
    stays = run.submit("c", max_tokens=3)
    run.step()

    for one in (done, twice, twice, 999):
        run.engine.cancel(one)

    run.finish()
    assert len(run.tokens(stays)) == 3


def test_the_slot_is_free_for_the_next_at_once() -> None:
    """The step after a cancel admits who waited for that slot."""
    run = EngineRun(max_sequences=1)
    gone = run.submit("a")
    next_one = run.submit("b")
    run.step()

    run.engine.cancel(gone)
    run.step()

    assert run.started == [gone, next_one]
    assert len(run.tokens(next_one)) == 1
