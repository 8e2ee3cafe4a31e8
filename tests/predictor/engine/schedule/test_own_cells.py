"""Slots with cells of their own beside a pool: who goes where, and who waits."""

from __future__ import annotations

from kserve_llamacpp.engine.cache.snapshots import SnapshotCache
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import FakeBackend, letters_after
from tests.predictor.fake_memory import FakeMemory

_SLOTS = 3


def _run(own_length: int = 10, pool: int = 40, host_bytes: int = 1 << 20) -> EngineRun:
    memory = FakeMemory(pool, 2 * _SLOTS, num_own=_SLOTS, own_length=own_length)
    return EngineRun(
        FakeBackend(num_cells=pool, memory=memory),
        pool,
        max_sequences=_SLOTS,
        prefill_tokens_beside_decode=16,
        cache=SnapshotCache(memory, pool, host_bytes, can_cut=True),
        own_length=own_length,
    )


def _slots(run: EngineRun) -> set[int]:
    return {row.slot for batch in run.backend.batches for row in batch}


def test_who_fits_stays_in_its_own_cells() -> None:
    """Sequences that end within their own cells take none of the pool, in the lowest slots."""
    run = _run()
    ids = [run.submit("abcd", max_tokens=4) for _ in range(2)]
    run.finish()

    assert _slots(run) == {0, 1}
    assert [run.text(one) for one in ids] == [letters_after("abcd", 4)] * 2


def test_who_outgrows_its_own_cells_moves() -> None:
    """The token that does not fit any more is computed in the pool; nothing is computed again."""
    run = _run()
    one = run.submit("abcd", max_tokens=12)
    run.finish()

    assert _slots(run) == {0, _SLOTS}
    assert run.text(one) == letters_after("abcd", 12)
    assert sum(map(len, run.backend.batches)) == 4 + 11
    assert sum(stats.preemptions for stats in run.stats) == 0


def test_a_long_prompt_begins_in_the_pool() -> None:
    """A prompt of which no token more would fit beside it goes to the pool at once."""
    run = _run()
    one = run.submit("x" * 10, max_tokens=2)
    run.finish()

    assert _slots(run) == {_SLOTS}
    assert run.text(one) == letters_after("x" * 10, 2)


def test_short_ones_pass_who_waits_for_the_pool() -> None:
    """While the pool is taken, a long prompt waits, and those that need none of it go on."""
    run = _run()
    first = run.submit("x" * 30, max_tokens=8)
    run.step()
    long = run.submit("y" * 30, max_tokens=2)
    short = run.submit("abc", max_tokens=2)
    run.steps(5)

    assert run.is_done(short)
    assert run.started == [first, short]
    run.finish()
    assert run.text(long) == letters_after("y" * 30, 2)


def test_a_second_long_prompt_does_not_pass_the_first() -> None:
    """Who waits for the pool gets it before a later one that would fit sooner."""
    run = _run()
    run.submit("x" * 25, max_tokens=8)
    run.step()
    waiting = run.submit("y" * 30, max_tokens=2)
    later = run.submit("z" * 11, max_tokens=2)
    run.finish()

    assert run.started.index(waiting) < run.started.index(later)


def test_who_outgrows_its_cells_waits_for_a_full_pool() -> None:
    """Where the pool has no room it goes back to the queue, and its tokens are kept."""
    run = _run()
    big = run.submit("x" * 30, max_tokens=10)
    run.steps(2)
    small = run.submit("abcd", max_tokens=20)
    run.finish()

    assert sum(stats.preemptions for stats in run.stats) > 0
    assert run.text(big) == letters_after("x" * 30, 10)
    assert run.text(small) == letters_after("abcd", 20)


def test_only_the_pool_gives_way_to_the_pool() -> None:
    """When the pool runs out, one of those in it is preempted, not one with its own cells."""
    run = _run(pool=30)
    short = run.submit("ab", max_tokens=8)
    longs = [run.submit(letter * 11, max_tokens=8) for letter in "xy"]
    run.finish()

    assert sum(stats.preemptions for stats in run.stats) == 1
    assert run.backend.drops[0] == 1  # the short one's, at its end
    assert run.text(short) == letters_after("ab", 8)
    assert [run.text(one) for one in longs] == [letters_after(c * 11, 8) for c in "xy"]


def test_a_beginning_that_does_not_fit_is_brought_back_into_the_pool() -> None:
    """A short prompt whose beginning is a part of a long state takes the pool, where it fits."""
    run = _run()
    run.submit("x" * 20, max_tokens=2)
    run.finish()
    one = run.submit("x" * 6 + "a", max_tokens=2)
    run.finish()

    assert run.cached[one] == 6
    assert _slots(run) == {_SLOTS}


def test_it_does_without_where_the_pool_is_taken() -> None:
    """A short prompt does not wait for the pool to bring its beginning back: it computes it."""
    run = _run()
    run.submit("x" * 20, max_tokens=2)
    run.finish()
    run.submit("y" * 30, max_tokens=9)
    run.steps(2)
    one = run.submit("x" * 6 + "a", max_tokens=2)
    run.steps(4)

    assert run.is_done(one)
    assert run.cached[one] == 0
    run.finish()


def test_all_cells_are_told() -> None:
    """The statistics count the slots' own cells and the pool's."""
    run = _run()
    run.submit("x" * 12, max_tokens=3)
    run.submit("abc", max_tokens=3)
    run.step()

    assert run.stats[-1].cells_total == 3 * 10 + 40
    assert run.stats[-1].cells_used == 15
    run.finish()


def test_who_waits_for_the_pool_gets_it_in_time() -> None:
    """Short ones that go on to the pool pass a long prompt only for a while, however many come."""
    run = _run()
    run.submit("a" * 5, max_tokens=20)
    run.steps(10)  # it is in the pool
    long = run.submit("y" * 35, max_tokens=2)
    for _ in range(60):
        run.submit("b" * 5, max_tokens=20)
        run.submit("c" * 5, max_tokens=20)
        run.steps(4)

    assert long in run.started
    assert run.text(long) == letters_after("y" * 35, 2)


def test_a_tenant_that_needs_the_pool_gets_it_from_one_that_has_it() -> None:
    """Nobody with cells of its own gives way for it again and again: one in the pool does, once."""
    run = _run()
    run.submit("x" * 30, max_tokens=9, tenant="a")
    short = [run.submit(letter * 3, max_tokens=6, tenant="a") for letter in "de"]
    run.steps(4)
    long = run.submit("y" * 35, max_tokens=2, tenant="b")
    run.finish()

    assert sum(stats.preemptions for stats in run.stats) == 1
    assert [run.text(one) for one in short] == [letters_after(c * 3, 6) for c in "de"]
    assert run.text(long) == letters_after("y" * 35, 2)


def test_the_shortest_of_equal_beginnings_is_brought_back() -> None:
    """Of two that begin alike, the one that fits into a slot's own cells is taken."""
    run = _run()
    run.submit("xxxx" + "a" * 25, max_tokens=2)
    run.submit("xxxx" + "b", max_tokens=2)
    run.finish()
    run.backend.batches.clear()
    one = run.submit("xxxx" + "c", max_tokens=2)
    run.finish()

    assert run.cached[one] == 4
    assert _slots(run) == {0}


def test_many_long_ones_hide_no_short_one() -> None:
    """However many wait for the pool, a short prompt behind them is found."""
    run = _run()
    run.submit("x" * 30, max_tokens=9)
    run.steps(2)
    for _ in range(100):
        run.submit("y" * 30, max_tokens=1)
    short = run.submit("abc", max_tokens=2)
    run.steps(4)

    assert run.is_done(short)
    run.finish(2000)
