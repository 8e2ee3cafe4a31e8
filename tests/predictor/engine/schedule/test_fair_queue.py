"""Who of those that wait is next: fair among tenants, by priority inside one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve_llamacpp.engine.schedule.fair_queue import FairQueue


@dataclass(eq=False)
class _Item:
    tenant: str = ""
    priority: int = 0
    prompt: int = 1
    generated: int = 1


def _pop_all(queue: FairQueue[_Item]) -> list[_Item]:
    items = []
    while queue:
        items.append(queue.pop_head())
        queue.check_integrity()
    return items


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    """Where nobody names a tenant, the first that came is the first to go."""
    queue: FairQueue[_Item] = FairQueue()
    items = [_Item() for _ in range(4)]
    for item in items:
        queue.add(item)

    assert list(queue) == items
    assert queue.head() is items[0]
    assert _pop_all(queue) == items


def test_an_empty_queue_has_no_head() -> None:
    """Nobody is next when nobody waits, also after the last one has gone."""
    queue: FairQueue[_Item] = FairQueue()
    assert queue.head() is None

    queue.add(_Item())
    queue.pop_head()

    assert queue.head() is None
    with pytest.raises(IndexError):
        queue.pop_head()


def test_a_lower_priority_goes_first_inside_a_tenant() -> None:
    """As in vLLM a lower number is earlier; equal ones keep their order of arrival."""
    queue: FairQueue[_Item] = FairQueue()
    late, first, second, urgent = (_Item(priority=p) for p in (5, 0, 0, -1))
    for item in (late, first, second, urgent):
        queue.add(item)

    assert _pop_all(queue) == [urgent, first, second, late]


def test_priority_takes_nothing_from_other_tenants() -> None:
    """A tenant that calls all it sends urgent only reorders its own."""
    queue: FairQueue[_Item] = FairQueue()
    plain, urgent, urgent_too = _Item("a"), _Item("b", -9), _Item("b", -9)
    for item in (plain, urgent, urgent_too):
        queue.add(item)

    assert _pop_all(queue) == [plain, urgent, urgent_too]


def test_the_least_served_tenant_goes_first() -> None:
    """Who was charged more waits for who was charged less, whoever came first."""
    queue: FairQueue[_Item] = FairQueue()
    a, b = _Item("a"), _Item("b")
    queue.add(a)
    queue.add(b)

    queue.charge("a", prompt_tokens=1)

    assert _pop_all(queue) == [b, a]


def test_a_generated_token_costs_more_than_one_of_the_prompt() -> None:
    """By default a generated token weighs as much as two of a prompt."""
    queue: FairQueue[_Item] = FairQueue()
    queue.charge("a", prompt_tokens=5)
    queue.charge("b", generated_tokens=3)

    assert (queue.service("a"), queue.service("b")) == (5, 6)


def test_among_equals_the_one_served_longest_ago_goes_first() -> None:
    """Tenants with the same counter take turns, also when nothing is charged in between."""
    queue: FairQueue[_Item] = FairQueue()
    items = [_Item(tenant) for tenant in "aabbcc"]
    for item in items:
        queue.add(item)

    assert [item.tenant for item in _pop_all(queue)] == list("abcabc")


def test_who_takes_several_at_once_takes_from_all_tenants() -> None:
    """Iteration begins with the head and goes round the tenants, before anything is charged."""
    queue: FairQueue[_Item] = FairQueue()
    for tenant in "aaabbc":
        queue.add(_Item(tenant))

    assert [item.tenant for item in queue] == list("abcaba")
    assert next(iter(queue)) is queue.head()


def test_a_tenant_that_is_ahead_gives_others_several_turns() -> None:
    """In the order of service each costs the average of before, so that one who is ahead waits.

    Here it is 15: with 25 and 5 the tenants stand level after two turns of the second.
    """
    queue: FairQueue[_Item] = FairQueue()
    for tenant in "aaabbbb":
        queue.add(_Item(tenant))
    for cost in (25, 5):
        queue.charge(queue.pop_head().tenant, cost)

    assert [item.tenant for item in queue] == list("bbaba")


def test_a_newcomer_goes_before_who_was_just_served() -> None:
    """Between equal counters the one that something was taken from later waits, however taken."""
    queue: FairQueue[_Item] = FairQueue()
    first, second = _Item("a"), _Item("a")
    queue.add(first)
    queue.add(second)
    queue.remove(first)

    queue.add(_Item("new"))

    assert queue.service("new") == queue.service("a")
    assert _pop_all(queue)[0].tenant == "new"


def test_an_idle_tenant_saves_up_no_credit() -> None:
    """Who comes back goes ahead once, not for all the time in which it wanted nothing."""
    queue: FairQueue[_Item] = FairQueue()
    queue.charge("idle", 1)
    for _ in range(4):
        queue.add(_Item("busy"))
    for _ in range(2):
        queue.pop_head()
        queue.charge("busy", 500)
    for _ in range(2):
        queue.add(_Item("idle"))

    assert queue.service("idle") == queue.service("busy") == 1000
    assert queue.pop_head().tenant == "idle"
    queue.charge("idle", 1)
    assert queue.pop_head().tenant == "busy"


def test_the_last_to_leave_the_queue_leaves_its_counter_to_newcomers() -> None:
    """While nobody waits a newcomer begins where the one that left last stands by now."""
    queue: FairQueue[_Item] = FairQueue()
    queue.add(_Item(""))
    queue.pop_head()
    queue.charge("", 70)

    queue.add(_Item("new"))

    assert queue.service("new") == 70


def test_the_tenant_without_a_name_is_one_like_others() -> None:
    """Requests that name no tenant are one tenant together, whose counter counts."""
    queue: FairQueue[_Item] = FairQueue()
    queue.charge("gone", 50)
    gone = _Item("gone")
    queue.add(gone)
    queue.add(_Item(""))
    queue.remove(gone)
    queue.charge("", 7)

    assert queue.service("new") == 57


def test_a_preempted_item_goes_before_its_tenants_others() -> None:
    """What is put back goes before those that wait, what was put back last before the others."""
    queue: FairQueue[_Item] = FairQueue()
    old, young, waiting = _Item(), _Item(), _Item()
    for item in (old, young, waiting):
        queue.add(item)
    queue.pop_head()
    queue.pop_head()

    queue.add_front(young)
    queue.add_front(old)

    assert _pop_all(queue) == [old, young, waiting]


def test_a_preempted_item_does_not_go_before_urgent_ones() -> None:
    """What is put back stays behind its own tenant's lower priorities."""
    queue: FairQueue[_Item] = FairQueue()
    urgent, preempted = _Item(priority=-1), _Item(priority=0)
    queue.add(urgent)

    queue.add_front(preempted)

    assert _pop_all(queue) == [urgent, preempted]


def test_a_tenant_keeps_its_counter_when_it_is_preempted() -> None:
    """A preempted tenant was not idle: its counter is not lifted."""
    queue: FairQueue[_Item] = FairQueue()
    queue.charge("rich", 100)
    preempted = _Item("poor")
    queue.add(preempted)
    queue.pop_head()
    queue.add(_Item("rich"))

    queue.add_front(preempted)

    assert queue.service("poor") == 0


def test_the_best_served_tenant_is_the_one_to_preempt_from() -> None:
    """Of the tenants asked for, the one with the highest counter; None where there are none."""
    queue: FairQueue[_Item] = FairQueue()
    queue.charge("a", 3)
    queue.charge("b", 5)
    queue.charge("c", 9)

    assert queue.best_served(["a", "b", "nobody"]) == "b"
    assert queue.best_served([]) is None


def test_idle_tenants_are_forgotten_beyond_the_bound() -> None:
    """However many names come, the queue remembers so many; those with the least to lose go."""
    queue: FairQueue[_Item] = FairQueue(max_tenants=3)
    queue.charge("heavy", 9000)
    for number in range(50):
        item = _Item(f"t{number}")
        queue.add(item)
        queue.charge(item.tenant, number)
        queue.remove(item)
        queue.check_integrity()

    assert queue.num_tenants <= 3
    assert queue.service("heavy") == 9000


def test_those_who_lose_nothing_are_forgotten_together() -> None:
    """Where one is too many, all idle ones go that would begin at the same counter anyway."""
    queue: FairQueue[_Item] = FairQueue(max_tenants=8)
    for number in range(8):
        queue.charge(f"t{number}", 0)
    assert queue.num_tenants == 8

    queue.charge("one more", 1)

    assert queue.num_tenants == 1


@given(
    num_slots=st.integers(1, 4),
    jobs=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 10)), max_size=80
    ),
)
@settings(deadline=None)
def test_service_of_backlogged_tenants_differs_by_a_constant(
    num_slots: int, jobs: list[tuple[str, int, int]]
) -> None:
    """While two tenants both wait, their service differs by what one may take beyond its turn.

    That is a prompt, and the tokens of all slots; no slot is free while somebody waits.
    """
    queue: FairQueue[_Item] = FairQueue()
    for tenant, prompt, generated in jobs:
        queue.add(_Item(tenant, 0, prompt, generated))
    served = dict.fromkeys("abc", 0)
    running: list[_Item] = []
    bound = 20 + 2 * 10 * num_slots
    while queue or running:
        while len(running) < num_slots and queue:
            item = queue.pop_head()
            queue.charge(item.tenant, prompt_tokens=item.prompt)
            served[item.tenant] += item.prompt
            running.append(item)
        assert len(running) == num_slots or not queue
        for item in list(running):
            queue.charge(item.tenant, generated_tokens=1)
            served[item.tenant] += 2
            item.generated -= 1
            if item.generated == 0:
                running.remove(item)
        queue.check_integrity()
        waiting = [served[tenant] for tenant in {item.tenant for item in queue}]
        assert not waiting or max(waiting) - min(waiting) <= bound


@given(flood=st.lists(st.integers(1, 30), min_size=60, max_size=60), weight=st.integers(1, 30))
def test_nobody_starves_beside_a_flood(flood: list[int], weight: int) -> None:
    """One request among a flood of another tenant's is next but one, whatever was served before."""
    queue: FairQueue[_Item] = FairQueue()
    queue.charge("flood", weight)
    for _ in flood:
        queue.add(_Item("flood"))
    for cost in flood[:30]:
        queue.charge(queue.pop_head().tenant, cost)
    queue.add(_Item("one"))

    assert "one" in [queue.pop_head().tenant for _ in range(2)]


class RandomOperations(RuleBasedStateMachine):
    """Does anything that a scheduler may do; a plain list says who must be next."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[_Item] = FairQueue(max_tenants=4)
        self.waiting: list[_Item] = []
        self.gone: list[_Item] = []

    @rule(tenant=st.sampled_from(["", *"abcdefg"]), priority=st.integers(-1, 1))
    def add(self, tenant: str, priority: int) -> None:
        item = _Item(tenant, priority)
        self.waiting.append(item)
        self.queue.add(item)

    @rule()
    def pop(self) -> None:
        if self.waiting:
            head = self.queue.head()
            item = self.queue.pop_head()
            assert item is head
            least = min(self.queue.service(other.tenant) for other in self.waiting)
            assert self.queue.service(item.tenant) == least
            self.waiting.remove(item)
            own = [other.priority for other in self.waiting if other.tenant == item.tenant]
            assert item.priority <= min(own, default=item.priority)
            self.gone.append(item)

    @rule()
    def put_back(self) -> None:
        if self.gone:
            item = self.gone.pop()
            self.waiting.append(item)
            self.queue.add_front(item)

    @rule(at=st.integers(0, 1000))
    def remove(self, at: int) -> None:
        if self.waiting:
            self.queue.remove(self.waiting.pop(at % len(self.waiting)))

    @rule(tenant=st.sampled_from(["", *"abcdefghij"]), tokens=st.integers(0, 9))
    def charge(self, tenant: str, tokens: int) -> None:
        before = self.queue.service(tenant)
        self.queue.charge(tenant, tokens, tokens)
        assert self.queue.service(tenant) == before + 3 * tokens

    @invariant()
    def nothing_is_lost(self) -> None:
        self.queue.check_integrity()
        assert set(self.queue) == set(self.waiting)
        assert next(iter(self.queue), None) is self.queue.head()
        assert len(self.queue) == len(self.waiting)
        assert (self.queue.head() is None) == (not self.waiting)


TestRandomOperations = RandomOperations.TestCase
