"""What stays known, what is shared, what is parked and where it goes."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine.cache.costs import Costs
from kserve_llamacpp.engine.cache.node import Node
from kserve_llamacpp.engine.cache.radix import RadixCache
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import FakeBackend, letters_after
from tests.predictor.fake_memory import FakeMemory

_FREE = Costs(parked_cell=0.0, restore_cell=1e-5, prefill_token=1e-3)
_DEAR = Costs(parked_cell=1e-4, restore_cell=1e-5, prefill_token=1e-3)  # parked for ten rows alone


def _run(
    num_cells: int = 200,
    host_bytes: int = 0,
    costs: Costs = _FREE,
    num_holders: int = 20,
    max_sequences: int = 4,
    step_tokens: int = 64,
    beside: int = 32,
) -> EngineRun:
    memory = FakeMemory(num_cells, max_sequences, max_sequences + num_holders)
    return EngineRun(
        FakeBackend(num_cells=num_cells, memory=memory),
        num_cells,
        max_sequences,
        step_tokens,
        beside,
        cache=RadixCache(memory, num_cells, costs, host_bytes),
    )


def _hits(run: EngineRun) -> int:
    return sum(stats.cache_hits for stats in run.stats)


def test_a_prompt_that_was_seen_is_not_computed_again() -> None:
    """All but the last token of a repeated prompt come from the cache, and the answer is equal."""
    run = _run()
    first = run.submit("the same prompt", max_tokens=3)
    run.finish()
    again = run.submit("the same prompt", max_tokens=3)
    run.finish()

    assert run.text(first) == run.text(again)
    assert run.cached[again] == len("the same prompt") - 1
    assert len(run.backend.batches[3]) == 1


def test_an_answer_is_known_to_the_next_turn() -> None:
    """A conversation that goes on finds its history, answer included, but for the last token."""
    run = _run()
    first = run.submit("hello there", max_tokens=8)
    run.finish()
    history = "hello there" + run.text(first)
    second = run.submit(history + " and then", max_tokens=2)
    run.finish()

    assert run.cached[second] == len(history) - 1


def test_live_sequences_share_what_they_begin_with() -> None:
    """A prefix of two running sequences takes its cells once."""
    run = _run()
    prefix = "x" * 40
    for letter in "ab":
        run.submit(prefix + letter * 5, max_tokens=10)
    run.steps(3)

    assert run.scheduler.num_running == 2
    assert run.backend.num_cells_used < 40 + 2 * (5 + 4)


def test_who_begins_with_what_is_being_computed_waits_for_it() -> None:
    """A prefix that another is prefilling is computed once, also when both came together."""
    run = _run(step_tokens=10, beside=10)
    prefix = "x" * 40
    ids = [run.submit(prefix + letter * 4, max_tokens=2) for letter in "abc"]
    run.finish()

    assert [run.cached[one] for one in ids] == [0, 40, 40]
    assert sum(stats.prefill_tokens for stats in run.stats) <= 44 + 4 + 4
    assert [run.text(one) for one in ids] == [letters_after(prefix + c * 4, 2) for c in "abc"]


def test_choices_of_one_prompt_prefill_it_once() -> None:
    """The same prompt several times at once is prefilled once."""
    run = _run()
    ids = [run.submit("y" * 30, max_tokens=3) for _ in range(4)]
    run.finish()

    assert [run.cached[one] for one in ids] == [0, 29, 29, 29]


def test_others_are_not_held_up_by_one_that_waits_for_a_prefix() -> None:
    """While one waits for a prefix, another behind it that needs none is admitted."""
    run = _run(step_tokens=10, beside=10)
    run.submit("x" * 40, max_tokens=2)
    run.step()
    waits = run.submit("x" * 40 + "y", max_tokens=2)
    other = run.submit("z" * 5, max_tokens=2)
    run.step()

    assert other in run.started
    assert waits not in run.started
    run.finish()


def test_salts_keep_prefixes_apart() -> None:
    """The same prompt under another salt is computed anew; under its own it is known."""
    run = _run()
    run.submit("a secret prompt", max_tokens=2, cache_salt="one")
    run.finish()
    other = run.submit("a secret prompt", max_tokens=2, cache_salt="two")
    none = run.submit("a secret prompt", max_tokens=2)
    own = run.submit("a secret prompt", max_tokens=2, cache_salt="one")
    run.finish()

    assert [run.cached[one] for one in (other, none, own)] == [0, 0, 14]


def _tenant(run: EngineRun, prompt: str, tenant: str, is_apart: bool = False) -> int:
    salt = f"{tenant} salted" if is_apart else tenant
    return run.submit(prompt, 2, cache_salt=salt, owner=tenant, is_apart=is_apart)


@pytest.mark.parametrize("host_bytes", [0, 1 << 20])
def test_a_named_prompt_is_shared_by_all_tenants(host_bytes: int) -> None:
    """What the operator has named is computed once for all; behind it each tenant has its own.

    A request with a salt of its own shares not even that.
    """
    run = _run(host_bytes=host_bytes)
    named = "You are kind. "
    assert run.share(named) == [len(named)]
    for tenant in "ab":
        _tenant(run, named + "my card is 1234", tenant)
        run.finish()
    guess = _tenant(run, named + "my card is 1234", "c")
    own = _tenant(run, named + "my card is 9999", "a")
    apart = _tenant(run, named + "my card is 1234", "a", is_apart=True)
    run.finish()

    assert run.cached == {1: 0, 2: 14, guess: 14, own: 25, apart: 0}


def test_a_part_of_a_named_prompt_is_shared_by_nobody() -> None:
    """Who does not know all of a named prompt cannot find it out, letter by letter."""
    run = _run()
    run.share("You are kind. ")
    _tenant(run, "You are kind. Hello", "a")
    run.finish()
    part = _tenant(run, "You are kind, hello", "b")
    run.finish()

    assert run.cached[part] == 0


def test_named_prompts_may_begin_with_each_other() -> None:
    """Of two named prompts that begin alike, a request shares the longest that it begins with."""
    run = _run()
    run.share("You are kind. ", "You are kind. And")
    longer, shorter = "You are kind. And so tall", "You are kind. Amen to that"
    ids = []
    for prompt, tenant in [(longer, "a"), (shorter, "b"), (longer, "c"), (shorter, "b")]:
        ids.append(_tenant(run, prompt, tenant))
        run.finish()

    assert [run.cached[one] for one in ids] == [0, 14, 17, 25]


def test_a_tenant_is_told_of_what_it_has_used_itself() -> None:
    """Of a named prompt that others have computed nothing is counted, before one's own use."""
    run = _run()
    run.share("You are kind. ")
    ids = []
    for prompt, tenant in [("Hi", "a"), ("Good day", "b"), ("Bye", "b"), ("Good day", "b")]:
        ids.append(_tenant(run, f"You are kind. {prompt}", tenant))
        run.finish()

    assert [run.cached[one] for one in ids] == [0, 14, 14, 21]
    assert [run.own_cached[one] for one in ids] == [0, 0, 14, 21]


def test_where_all_share_a_guess_is_not_counted() -> None:
    """With one salt for all, prefixes of others are used, and only one's own are told of."""
    run = _run()
    for tenant in "ab":
        one = run.submit("my card is 1234, today", 2, owner=tenant)
        run.finish()
        again = run.submit("my card is 1234, at once", 2, owner=tenant)
        run.finish()

    assert (run.cached[one], run.own_cached[one]) == (21, 0)
    assert (run.cached[again], run.own_cached[again]) == (23, 17)


def test_who_has_used_a_prefix_has_used_its_parts() -> None:
    """A prefix that is divided later was used, in both parts, by all who had used the whole."""
    run = _run()
    ids = []
    for end, owner in [("yes", "a"), ("yes", "b"), ("no", "c"), ("yes", "b"), ("maybe", "b")]:
        ids.append(run.submit(f"my card is 1234, {end} {end}", 1, owner=owner))
        run.finish()

    assert [run.cached[one] for one in ids] == [0, 23, 17, 23, 17]
    assert [run.own_cached[one] for one in ids] == [0, 0, 0, 23, 17]


def test_who_has_computed_a_prefix_again_has_used_it() -> None:
    """Of two that generate the same at once, one's cells are kept, and both have used them."""
    run = _run()
    ids = [run.submit("x" * 30, 8, owner=owner) for owner in "ab"]
    run.finish()
    history = "x" * 30 + run.text(ids[0])
    again = [run.submit(history, 1, owner=owner) for owner in "ab"]
    run.finish()

    assert [run.own_cached[one] for one in again] == [37, 37]


def test_who_has_used_a_prefix_is_forgotten_with_it() -> None:
    """A prefix that another tenant has computed again is not told of as one's own from before."""
    run = _run(num_cells=60)
    for prompt, tenant in [
        ("a" * 30, "zero"),
        ("a" * 30, "one"),
        ("b" * 55, "one"),
        ("a" * 30, "two"),
    ]:
        run.submit(prompt, 1, owner=tenant)
        run.finish()
    again = run.submit("a" * 30, 1, owner="one")
    run.finish()

    assert (run.cached[again], run.own_cached[again]) == (29, 0)


def test_nobody_waits_for_the_prefix_of_another_tenant() -> None:
    """A prompt that another tenant is just prefilling is computed at once, not waited for."""
    run = _run(step_tokens=30, beside=30)
    for tenant in "ab":
        _tenant(run, "x" * 40, tenant)
    run.step()

    assert run.scheduler.num_running == 2
    run.finish()


def test_parked_cells_make_room_for_those_who_need_it() -> None:
    """A full cache of prefixes that nobody uses never stops a new prompt."""
    run = _run(num_cells=60)
    for letter in "abcdef":
        one = run.submit(letter * 30, max_tokens=5)
        run.finish()
        assert run.text(one) == letters_after(letter * 30, 5)

    assert sum(stats.preemptions for stats in run.stats) == 0
    assert sum(stats.cache_evictions for stats in run.stats) > 0


def test_what_is_evicted_comes_back_from_the_host() -> None:
    """With a host tier, an evicted prefix is restored instead of being computed."""
    run = _run(num_cells=60, host_bytes=1 << 20)
    for letter in "abcdef":
        run.submit(letter * 30, max_tokens=5)
        run.finish()
    again = run.submit("a" * 30, max_tokens=5)
    run.finish()

    assert run.cached[again] == 29
    assert sum(stats.host_cache_hits for stats in run.stats) == 29
    assert run.text(again) == letters_after("a" * 30, 5)


def test_the_host_tier_is_bounded() -> None:
    """The host holds no more bytes than it may; what was used longest ago goes first."""
    run = _run(num_cells=60, host_bytes=1500)
    for letter in "abcdefgh":
        run.submit(letter * 30, max_tokens=5)
        run.finish()
    oldest = run.submit("a" * 30, max_tokens=1)
    newest = run.submit("g" * 30, max_tokens=1)
    run.finish()

    assert 0 < run.cache.host_bytes <= 1500
    assert (run.cached[oldest], run.cached[newest]) == (0, 29)


def test_parked_cells_leave_when_they_have_cost_as_much_as_fetching_them() -> None:
    """Beside rows that others compute, a prefix is parked for a bounded number of them."""
    run = _run(costs=_DEAR)
    run.submit("a" * 30, max_tokens=1)
    run.finish()
    run.submit("b" * 8, max_tokens=6)
    run.step()
    assert run.cache.num_parked == 30  # 8 rows were computed beside it
    run.steps(3)

    assert run.cache.num_parked == 0
    run.finish()


def test_an_idle_engine_keeps_what_is_parked() -> None:
    """Parked cells cost nothing while nothing is computed: they stay."""
    run = _run(costs=_DEAR)
    run.submit("a" * 30, max_tokens=1)
    run.finish()
    for _ in range(50):
        run.engine.step()

    assert run.cache.num_parked == 30


def test_a_preempted_sequence_finds_its_cells_again() -> None:
    """Who gives way under pressure is not computed anew, if the host has room."""
    run = _run(num_cells=40, host_bytes=1 << 20)
    prompts = ["aaaa" * 3, "bbbb" * 3, "cccc" * 2]
    ids = [run.submit(prompt, max_tokens=18) for prompt in prompts]
    run.finish()

    assert sum(stats.preemptions for stats in run.stats) > 0
    assert sum(stats.host_cache_hits for stats in run.stats) > 0
    assert [run.text(one) for one in ids] == [letters_after(prompt, 18) for prompt in prompts]


def test_a_shared_prefix_outlives_a_cancelled_owner() -> None:
    """The one that computed a prefix may leave: those that share it go on."""
    run = _run()
    owner = run.submit("x" * 40 + "a", max_tokens=20)
    other = run.submit("x" * 40 + "b", max_tokens=5)
    run.steps(3)
    run.engine.cancel(owner)
    run.finish()

    assert run.text(other) == letters_after("x" * 40 + "b", 5)


def test_without_holders_everything_still_works() -> None:
    """Where no id is left for a prefix, nothing is parked and nothing fails."""
    run = _run(num_holders=1)
    for prompt in ("aaaaaaaa", "bbbbbbbb", "aaaaaaaabb", "bbbbbbbbaa"):
        one = run.submit(prompt, max_tokens=6)
        run.finish()
        assert run.text(one) == letters_after(prompt, 6)


def test_a_window_that_moved_on_is_a_miss() -> None:
    """Where cells of a parked prefix were overwritten, it is computed again, not trusted."""
    run = _run()
    run.submit("a" * 30, max_tokens=1)
    run.finish()
    memory = run.backend.memory
    for holder in range(memory.first_holder, memory.num_ids):
        memory.cut(holder, 0, 10)
    again = run.submit("a" * 30, max_tokens=4)
    while run.engine.has_work:
        run.steps(1)

    assert run.cached[again] == 0
    assert run.text(again) == letters_after("a" * 30, 4)


@pytest.mark.parametrize(
    ("costs", "has_host", "rows"),
    [
        (Costs(1e-6, 1e-5, 1e-3), True, 20),
        (Costs(1e-6, 1e-5, 1e-3), False, 1000),
        (Costs(1e-6, 1e-2, 1e-3), True, 1000),
        (Costs(0.0, 1e-5, 1e-3), True, float("inf")),
    ],
)
def test_parking_is_worth_as_much_as_fetching_costs(
    costs: Costs, has_host: bool, rows: float
) -> None:
    """The rows that a cell may be parked beside: until the cheaper of both fetches is paid."""
    assert costs.rows_worth_parking(has_host) == pytest.approx(rows)


def test_a_text_of_thousands_of_nodes_is_walked() -> None:
    """A long text that grew by a few tokens at a time is a deep tree: deeper than Python recurs."""
    root = node = Node([], 0, None, "")
    for at in range(3000):
        child = Node([at], at, node)
        node.children[at] = child
        node = child

    assert [below.start for below in root.below()] == list(range(3000))
