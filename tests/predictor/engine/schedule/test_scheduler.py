"""Who computes what in the next step."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine.cache.snapshots import SnapshotCache
from kserve_llamacpp.engine.schedule.fair_queue import FairQueue
from kserve_llamacpp.engine.schedule.scheduler import Chunk, Scheduler
from kserve_llamacpp.engine.sequence import Sequence, State
from kserve_llamacpp.wire.frames import SamplingParams
from tests.predictor.fake_memory import FakeMemory


def _sequence(id: int, num_prompt: int) -> Sequence:
    return Sequence(
        id=id,
        request_id=f"req-{id}",
        prompt=[0] * num_prompt,
        max_tokens=100,
        sampling=SamplingParams(),
        stops=[],
        resume=[],
    )


def _scheduler(*lengths: int, cells: int = 100, slots: int = 4) -> Scheduler:
    cache = SnapshotCache(FakeMemory(cells, slots), cells, 0, can_cut=True)
    scheduler = Scheduler(slots, cache, FairQueue())
    for at, length in enumerate(lengths):
        scheduler.add(_sequence(at, length))
    return scheduler


def _plan(scheduler: Scheduler, step_tokens: int = 16, beside: int = 4) -> list[Chunk]:
    """Let the scheduler plan a step of a fixed budget."""
    budget = step_tokens - scheduler.num_decoding
    plan = scheduler.schedule(min(budget, beside) if scheduler.num_decoding else budget)
    return [*plan.decode, *plan.prefill]


def _step(scheduler: Scheduler, step_tokens: int = 16, beside: int = 4) -> list[tuple[int, int]]:
    """Run a step as the engine does; return who computed how many tokens."""
    chunks = _plan(scheduler, step_tokens, beside)
    drawing = [chunk.sequence for chunk in chunks if chunk.is_last]
    for chunk in chunks:
        scheduler.computed(chunk)
    for sequence in drawing:
        sequence.tokens.append(0)
    scheduler.check_integrity()
    return [(chunk.sequence.id, chunk.count) for chunk in chunks]


def test_a_prompt_alone_takes_the_whole_budget() -> None:
    """While nobody decodes, prompts are prefilled with all the tokens of a step."""
    scheduler = _scheduler(40)

    assert [_step(scheduler) for _ in range(4)] == [[(0, 16)], [(0, 16)], [(0, 8)], [(0, 1)]]


def test_a_decoding_sequence_gets_its_token_in_every_step() -> None:
    """A long prompt never makes those that decode wait: decode comes first, in every step."""
    scheduler = _scheduler(3)
    _step(scheduler)
    scheduler.add(_sequence(1, 50))

    while (chunks := _step(scheduler))[-1] != (1, 1):
        assert chunks[0] == (0, 1)


def test_a_prompt_beside_decoders_gets_its_bounded_share() -> None:
    """Beside decoding sequences a step prefills the bounded share, not the whole budget."""
    scheduler = _scheduler(3)
    _step(scheduler)
    scheduler.add(_sequence(1, 10))

    assert [_step(scheduler) for _ in range(4)] == [
        [(0, 1), (1, 4)],
        [(0, 1), (1, 4)],
        [(0, 1), (1, 2)],
        [(0, 1), (1, 1)],
    ]


def test_the_steps_budget_holds_for_decoders_and_prompts_together() -> None:
    """Decoding tokens count against the budget of a step before the share of prompts does."""
    scheduler = _scheduler(1, 1, 1)
    _step(scheduler)
    scheduler.add(_sequence(3, 10))

    assert _step(scheduler, step_tokens=5) == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_several_prompts_share_a_step_in_order_of_arrival() -> None:
    """What an earlier prompt leaves of the budget goes to the next one."""
    scheduler = _scheduler(10, 10, 10)

    assert _step(scheduler) == [(0, 10), (1, 6)]
    assert _step(scheduler) == [(0, 1), (1, 4)]
    assert _step(scheduler) == [(0, 1), (1, 1), (2, 4)]


def test_a_short_prompt_goes_before_a_long_one() -> None:
    """The median of waiting is least when the prompt with the least left is computed first."""
    scheduler = _scheduler(40)
    _step(scheduler)
    scheduler.add(_sequence(1, 6))

    assert _step(scheduler) == [(1, 6), (0, 10)]


def test_a_long_prompt_is_overtaken_by_its_own_length_at_most() -> None:
    """However many short prompts come, a long one waits for as many tokens as it has itself."""
    scheduler = _scheduler(30, cells=1000, slots=100)
    overtaken = 0
    for at in range(20):
        scheduler.add(_sequence(at + 1, 8))
        plan = scheduler.schedule(8)
        if plan.prefill[0].sequence.id == 0:
            break
        for chunk in plan.prefill:
            scheduler.computed(chunk)
            chunk.sequence.tokens.append(0)
            overtaken += chunk.count

    assert 16 <= overtaken <= 30


def test_slots_go_to_those_who_came_first() -> None:
    """With every slot taken the others wait, and the first of them gets the next free one."""
    scheduler = _scheduler(2, 2, 2, slots=1)
    (first,) = [chunk.sequence for chunk in _plan(scheduler)]
    assert (first.id, scheduler.num_waiting) == (0, 2)

    scheduler.finish(first)

    assert _step(scheduler) == [(1, 2)]


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    """A short prompt that would fit waits behind a long one that does not: no starvation."""
    scheduler = _scheduler(60, 60, 2)

    assert {who for who, _ in _step(scheduler)} == {0}
    assert scheduler.num_waiting == 2


@pytest.mark.parametrize(("second", "is_admitted"), [(50, True), (51, False)])
def test_prompts_are_admitted_only_when_they_fit_as_a_whole(second: int, is_admitted: bool) -> None:
    """Two sequences run together only when their tokens, and one more of each, have room."""
    scheduler = _scheduler(48, second, cells=100)

    _step(scheduler)

    assert scheduler.num_running == 1 + is_admitted


def test_what_running_prompts_will_still_take_is_taken() -> None:
    """A half-filled prompt keeps the room for its rest: two of them would block each other."""
    scheduler = _scheduler(60, cells=100)
    _step(scheduler)
    scheduler.add(_sequence(1, 50))

    _step(scheduler)

    assert (scheduler.num_cells_used, scheduler.num_running) == (32, 1)


def test_one_that_fits_alone_is_admitted_alone() -> None:
    """A sequence as long as the cache is served when nothing else runs."""
    scheduler = _scheduler(100, cells=100)

    assert _step(scheduler, step_tokens=100) == [(0, 100)]


def test_the_youngest_gives_way_when_cells_run_out() -> None:
    """When a decoding sequence finds no cell, the one that came last goes back to the queue."""
    scheduler = _scheduler(4, 4, cells=10)
    _step(scheduler)
    _step(scheduler)

    chunks = _plan(scheduler)

    assert [chunk.sequence.id for chunk in chunks] == [0]
    assert (scheduler.num_preemptions, scheduler.num_waiting) == (1, 1)
    scheduler.check_integrity()


def test_preempted_sequences_come_back_in_their_order() -> None:
    """Those that gave way are the next to be admitted, the older one first, with their tokens."""
    scheduler = _scheduler(4, 4, 4, cells=15)
    _step(scheduler)
    _step(scheduler)
    _plan(scheduler)
    assert scheduler.preempt() is not None
    scheduler.add(_sequence(9, 4))
    oldest = _plan(scheduler)[0].sequence

    scheduler.finish(oldest)

    assert _step(scheduler)[:2] == [(1, 6), (2, 6)]


def test_a_sequence_alone_is_never_preempted() -> None:
    """The oldest goes on whatever happens, so there is always progress."""
    scheduler = _scheduler(4)
    _step(scheduler)

    assert scheduler.preempt() is None
    assert scheduler.num_running == 1


def test_a_step_that_preempts_admits_nobody() -> None:
    """Cells that were just given up are not given to someone new in the same step."""
    scheduler = _scheduler(4, 4, cells=10)
    _step(scheduler)
    _step(scheduler)
    scheduler.add(_sequence(2, 1))

    _plan(scheduler)

    assert scheduler.num_preemptions == 1
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)


@pytest.mark.parametrize("num_steps", [0, 1, 3, 6])
def test_finish_frees_everything_at_any_time(num_steps: int) -> None:
    """Waiting, prefilling or decoding: a finished sequence holds neither slot nor cells."""
    scheduler = _scheduler(slots=1)
    sequence = _sequence(0, 40)
    scheduler.add(sequence)
    for _ in range(num_steps):
        _step(scheduler)

    scheduler.finish(sequence)

    assert sequence.slot is None
    assert sequence.state is State.FINISHED
    assert not scheduler.has_work
    assert scheduler.num_cells_used == 0
    scheduler.check_integrity()


def test_a_uniform_scheduler_computes_a_sequence_in_the_same_parts_again() -> None:
    """The prompt in parts of a step, then token by token what was generated, also when replayed."""
    cache = SnapshotCache(FakeMemory(100, 1), 100, 0, can_cut=True)
    scheduler = Scheduler(1, cache, FairQueue(), is_uniform=True)
    sequence = _sequence(0, 20)
    sequence.tokens += [7] * 3  # it was running elsewhere
    scheduler.add(sequence)

    counts = [_step(scheduler, step_tokens=16, beside=16)[0][1] for _ in range(6)]

    assert counts == [16, 4, 1, 1, 1, 1]


def test_integrity_notices_a_lost_slot() -> None:
    """`check_integrity` fails when a slot is neither free nor used."""
    scheduler = _scheduler(4)
    _step(scheduler)
    sequence = _plan(scheduler)[0].sequence
    sequence.slot = 3 if sequence.slot != 3 else 2

    with pytest.raises(AssertionError):
        scheduler.check_integrity()


def test_integrity_notices_cells_over_the_limit() -> None:
    """`check_integrity` fails when more cells are used than there are."""
    scheduler = _scheduler(4, cells=10)
    _step(scheduler)
    sequence = _plan(scheduler)[0].sequence
    sequence.tokens += [0] * 20
    scheduler.computed(Chunk(sequence, 7))

    with pytest.raises(AssertionError):
        scheduler.check_integrity()
