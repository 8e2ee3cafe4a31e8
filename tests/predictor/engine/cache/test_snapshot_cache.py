"""Whole sequences on the host: of split caches, which can be cut, and of recurrent memories."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine.backend import DecodeFailed
from kserve_llamacpp.engine.cache.snapshots import SnapshotCache
from kserve_llamacpp.engine.sequence import Sequence
from kserve_llamacpp.wire.frames import SamplingParams
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import FakeBackend, letters_after
from tests.predictor.fake_memory import FakeMemory


def _run(can_cut: bool, host_bytes: int = 1 << 20) -> EngineRun:
    memory = FakeMemory(400, 4, can_cut=can_cut)
    return EngineRun(
        FakeBackend(num_cells=400, max_length=100, memory=memory),
        400,
        step_tokens=64,
        prefill_tokens_beside_decode=32,
        cache=SnapshotCache(memory, 400, host_bytes, can_cut),
    )


@pytest.mark.parametrize(("can_cut", "cached"), [(True, 20), (False, 0)])
def test_a_part_is_used_only_where_it_can_be_cut(can_cut: bool, cached: int) -> None:
    """A common beginning is taken from a split cache; a recurrent state is of no use to it."""
    run = _run(can_cut)
    run.submit("x" * 20 + "abc", max_tokens=5)
    run.finish()
    other = run.submit("x" * 20 + "def", max_tokens=5)
    run.finish()

    assert run.cached[other] == cached
    assert run.text(other) == letters_after("x" * 20 + "def", 5)


def _tenant(run: EngineRun, prompt: str, tenant: str) -> int:
    one = run.submit(prompt, 2, cache_salt=tenant, owner=tenant)
    run.finish()
    return one


def test_a_named_prompt_is_copied_for_all_tenants() -> None:
    """Of a split cache a tenant gets another's state as far as the operator has named it.

    It is told of that only when it has used it itself.
    """
    run = _run(can_cut=True)
    run.share("You are kind. ")
    prompt = "You are kind. My card is 1234"
    ids = [_tenant(run, prompt, tenant) for tenant in "abb"]
    ids.append(_tenant(run, "You are kind. My card is 9", "c"))
    ids.append(_tenant(run, "You are king. My card is 9", "c"))

    assert [run.cached[one] for one in ids] == [0, 14, 28, 14, 0]
    assert [run.own_cached[one] for one in ids] == [0, 0, 28, 0, 0]


def test_a_whole_state_is_of_one_tenant() -> None:
    """A recurrent state that knows more than a named prompt is given to no other tenant."""
    run = _run(can_cut=False)
    run.share("You are kind. ")
    first = _tenant(run, "You are kind. ", "a")
    whole = "You are kind. " + run.text(first)
    ids = [_tenant(run, whole + "then", tenant) for tenant in "ab"]

    assert [run.cached[one] for one in ids] == [15, 0]


def test_a_state_that_others_have_used_outlives_its_parts() -> None:
    """Where all share, who has used a state that became part of a longer one has used that."""
    run = _run(can_cut=True)
    for prompt, owner in [("hello there", "a"), ("hello there", "b"), ("hello there, all", "a")]:
        run.submit(prompt, 1, owner=owner)
        run.finish()
    again = run.submit("hello there, all of you", 1, owner="b")
    run.finish()

    assert (run.cached[again], run.own_cached[again]) == (16, 11)


def test_a_state_in_use_has_been_used() -> None:
    """Where all share, a request is told of a state that its tenant's other one is just using."""
    run = _run(can_cut=False)
    run.submit("hello there", 1, owner="a")
    run.finish()
    ids = [run.submit(f"hello there {end}", 5, owner="b") for end in ("one", "two")]
    run.finish()

    assert [run.cached[one] for one in ids] == [11, 11]
    assert [run.own_cached[one] for one in ids] == [0, 11]


@pytest.mark.parametrize("can_cut", [True, False])
def test_a_conversation_goes_on_from_its_whole_state(can_cut: bool) -> None:
    """The next turn of a conversation begins with all that was computed in the one before."""
    run = _run(can_cut)
    first = run.submit("hello there", max_tokens=8)
    run.finish()
    history = "hello there" + run.text(first)
    second = run.submit(history + " and then", max_tokens=4)
    run.finish()

    assert run.cached[second] == len(history) - 1
    assert run.text(second) == letters_after(history + " and then", 4)


@pytest.mark.parametrize(("can_cut", "cached"), [(True, [0, 29, 29]), (False, [0, 0, 0])])
def test_a_running_sequence_is_copied_where_that_is_possible(
    can_cut: bool, cached: list[int]
) -> None:
    """Choices of one prompt prefill it once in a split cache, and each anew in a recurrent one."""
    run = _run(can_cut)
    ids = [run.submit("y" * 30, max_tokens=3) for _ in range(3)]
    run.finish()

    assert [run.cached[one] for one in ids] == cached


def test_nothing_is_kept_without_host_memory() -> None:
    """With a host tier of no bytes nothing is saved, and nobody waits for anything."""
    run = _run(can_cut=True, host_bytes=0)
    ids = [run.submit("y" * 30, max_tokens=3) for _ in range(2)]
    run.finish()

    assert [run.cached[one] for one in ids] == [0, 0]
    assert run.cache.host_bytes == 0


def test_the_oldest_snapshot_leaves_first() -> None:
    """What is kept is bounded in bytes."""
    run = _run(can_cut=True, host_bytes=900)
    for letter in "abcdef":
        run.submit(letter * 30, max_tokens=2)
        run.finish()
    oldest = run.submit("a" * 30, max_tokens=1)
    newest = run.submit("f" * 30, max_tokens=1)
    run.finish()

    assert (run.cached[oldest], run.cached[newest]) == (0, 29)


def test_a_failed_batch_sends_a_recurrent_sequence_back_to_its_beginning() -> None:
    """A state that cannot be cut is dropped after a failure, and computed again."""
    run = _run(can_cut=False)
    one = run.submit("x" * 20, max_tokens=6)
    run.steps(2)
    run.backend.leave_behind = 1
    run.backend.faults.append(DecodeFailed("code -3"))
    run.finish()

    assert run.text(one) == letters_after("x" * 20, 6)


def test_what_does_not_fit_is_not_copied_again_and_again() -> None:
    """A state larger than the host tier is not tried again, however many wait for such a prefix."""
    memory = FakeMemory(480, num_slots=4)
    cache = SnapshotCache(memory, 480, 400, can_cut=True)
    run = EngineRun(FakeBackend(num_cells=480, memory=memory), num_cells=480, cache=cache)
    run.submit("p" * 100 + "a", max_tokens=100)
    run.submit("q" * 100, max_tokens=100)
    run.steps(60)
    for at in range(20):
        run.submit("p" * 100 + f"b{at}", max_tokens=100)
    run.steps(30)

    assert memory.num_saves == 0
    assert 1 <= memory.num_sizes <= 3  # again only for fewer tokens


def test_room_is_made_before_a_copy() -> None:
    """Never is more in host memory than the tier may hold, not even while a state is copied."""
    memory = FakeMemory(400, 4)
    cache = SnapshotCache(memory, 400, 700, can_cut=True)
    held: list[int] = []
    save = memory.save

    def watched(id: int) -> bytearray | None:
        held.append(cache.host_bytes + memory.size(id))
        return save(id)

    memory.save = watched  # type: ignore[method-assign]
    run = EngineRun(FakeBackend(num_cells=400, memory=memory), num_cells=400, cache=cache)
    for letter in "abcdef":
        run.submit(letter * 30, max_tokens=2)
        run.finish()

    assert len(held) == 6
    assert max(held) <= 700


def test_what_is_known_follows_what_is_kept() -> None:
    """Who waits is told of a beginning as soon as it is there, and no more when it is gone."""
    run = _run(can_cut=True, host_bytes=900)
    cache = run.cache
    waiting = Sequence(0, "", [ord(c) for c in "x" * 30 + "a"], 1, SamplingParams(), [], [])
    assert cache.known(waiting).length == 0

    run.submit("x" * 30 + "b", max_tokens=2)
    run.finish()
    assert cache.known(waiting).length == 30

    waiting.tokens += [0, 0]
    assert cache.known(waiting).length == 30
    for letter in "cdefgh":
        run.submit(letter * 30, max_tokens=2)
        run.finish()
    assert cache.known(waiting).length == 0
