"""Who of those that wait is next: fair among tenants, by priority inside one; pure, no clock.

Source: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), the virtual token
counter: https://arxiv.org/abs/2401.00588.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Tenanted(Protocol):
    """What may wait: hashable by identity; a lower `priority` is earlier, as in vLLM."""

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def priority(self) -> int:
        """Which of its tenant's is earlier."""
        ...


T = TypeVar("T", bound=Tenanted)
_Key = tuple[int, int]  # priority, place


@dataclass
class _Tenant(Generic[T]):
    """A tenant's counter and what it has waiting, the next one first."""

    service: float
    born: int
    last_taken: int = 0
    keys: list[_Key] = field(default_factory=list)
    items: list[T] = field(default_factory=list)
    is_ranked: bool = False  # whether it has an entry in the heap

    @property
    def rank(self) -> tuple[float, int, int]:
        """Who goes first: the least served, the one served longest ago, the oldest."""
        return self.service, self.last_taken, self.born


class FairQueue(Generic[T]):
    """Owns what waits, and each tenant's counter of service; owner: the scheduler.

    The tenant with the least service goes first; among equals the one that was served longest ago.
    Inside a tenant the lower priority goes first, then what was put back, then arrival. A tenant
    that comes back from idle is lifted to the least counter among those that wait, or where nobody
    waits to that of the tenant which left the queue last: nobody saves up credit while idle.

    Counters only rise; so a tenant's entry in the heap, which is brought up to date when it comes
    to the top, is never too high, and one entry a tenant is enough.
    """

    def __init__(
        self, prompt_weight: float = 1.0, generated_weight: float = 2.0, max_tenants: int = 1024
    ) -> None:
        """The weights say what a token costs; at most `max_tenants` tenants are remembered,
        or those that wait, where they are more.

        The defaults are the paper's; on a CPU, too, a row of decode costs about as much as two of
        prefill.
        """
        self._prompt_weight = prompt_weight
        self._generated_weight = generated_weight
        self._max_tenants = max_tenants
        self._tenants: dict[str, _Tenant[T]] = {}
        self._ranks: list[tuple[tuple[float, int, int], str]] = []
        self._key_of: dict[T, _Key] = {}
        self._last_left: str | None = None  # where newcomers begin while nobody waits
        self._num_ticks = 0
        self._num_taken = 0
        self._charged = 0.0

    def __len__(self) -> int:
        return len(self._key_of)

    def __iter__(self) -> Iterator[T]:
        """Yield all that wait in the order in which they would be served, `head` first.

        Each is taken to cost what one has cost on average: whoever takes several at once, before
        anything is charged, takes them from the tenants in turn, and few of one that is ahead.
        """
        cost = self._charged / max(1, self._num_taken)
        turns = [(t.rank, 0, name) for name, t in self._tenants.items() if t.items]
        heapq.heapify(turns)
        while turns:
            _, at, name = heapq.heappop(turns)
            tenant = self._tenants[name]
            yield tenant.items[at]
            if at + 1 < len(tenant.items):
                rank = (tenant.service + (at + 1) * cost, self._num_ticks + at + 1, tenant.born)
                heapq.heappush(turns, (rank, at + 1, name))

    @property
    def num_tenants(self) -> int:
        """How many tenants are remembered."""
        return len(self._tenants)

    def service(self, tenant: str) -> float:
        """Return a tenant's counter: the weighted tokens that it was given."""
        known = self._tenants.get(tenant)
        return known.service if known is not None else self._least()

    def add(self, item: T) -> None:
        """Put a new item behind its tenant's others of the same priority."""
        tenant = self._tenant(item.tenant)
        if not tenant.items:
            tenant.service = max(tenant.service, self._least())
        self._insert(tenant, item, self._tick())

    def add_front(self, item: T) -> None:
        """Put an item back (it was preempted) before its tenant's others of the same priority.

        Its tenant was not idle, and keeps its counter.
        """
        self._insert(self._tenant(item.tenant), item, -self._tick())

    def head(self) -> T | None:
        """Return who is next, None when nobody waits; changes nothing that can be seen."""
        name = self._first()
        return self._tenants[name].items[0] if name is not None else None

    def pop_head(self) -> T:
        """Take out who is next; raises IndexError when nobody waits."""
        name = self._first()
        if name is None:
            raise IndexError("nobody waits")
        tenant = self._tenants[name]
        item = tenant.items[0]
        self._take(tenant, 0)
        return item

    def remove(self, item: T) -> None:
        """Take out an item, to serve it or not; raises KeyError when it does not wait."""
        key = self._key_of[item]
        tenant = self._tenants[item.tenant]
        self._take(tenant, bisect.bisect_left(tenant.keys, key))

    def charge(self, tenant: str, prompt_tokens: int = 0, generated_tokens: int = 0) -> None:
        """Count what was computed for a tenant."""
        cost = self.cost(prompt_tokens, generated_tokens)
        self._tenant(tenant).service += cost
        self._charged += cost

    def cost(self, prompt_tokens: int = 0, generated_tokens: int = 0) -> float:
        """Return what a tenant is charged for so many tokens."""
        return prompt_tokens * self._prompt_weight + generated_tokens * self._generated_weight

    def best_served(self, tenants: Iterable[str]) -> str | None:
        """Return who of these was served most, the latest among equals: the one to preempt from."""

        def rank(name: str) -> tuple[float, int, int]:
            known = self._tenants.get(name)
            return known.rank if known is not None else (self._least(), 0, 0)

        return max(tenants, key=rank, default=None)

    def check_integrity(self) -> None:
        """Check that every item stands where it is looked for; raises AssertionError."""
        keys = {}
        for name, tenant in self._tenants.items():
            assert tenant.keys == sorted(tenant.keys)
            assert len(tenant.keys) == len(tenant.items)
            assert tenant.is_ranked or not tenant.items
            for key, item in zip(tenant.keys, tenant.items, strict=True):
                assert (item.tenant, item.priority) == (name, key[0])
                keys[item] = key
        assert keys == self._key_of
        ranked = [name for _, name in self._ranks]
        assert len(ranked) == len(set(ranked))
        assert set(ranked) == {name for name, t in self._tenants.items() if t.is_ranked}
        assert all(rank <= self._tenants[name].rank for rank, name in self._ranks)
        num_waiting = sum(bool(tenant.items) for tenant in self._tenants.values())
        assert len(self._tenants) <= max(self._max_tenants, num_waiting + 2)

    # -- inside --------------------------------------------------------------------------------

    def _tick(self) -> int:
        self._num_ticks += 1
        return self._num_ticks

    def _insert(self, tenant: _Tenant[T], item: T, place: int) -> None:
        assert item not in self._key_of
        key = (item.priority, place)
        at = bisect.bisect_left(tenant.keys, key)
        tenant.keys.insert(at, key)
        tenant.items.insert(at, item)
        self._key_of[item] = key
        self._rank(item.tenant, tenant)

    def _take(self, tenant: _Tenant[T], at: int) -> None:
        tenant.last_taken = self._tick()
        self._num_taken += 1
        item = tenant.items.pop(at)
        del tenant.keys[at]
        del self._key_of[item]
        if not tenant.items:
            self._last_left = item.tenant
            self._forget_idle()

    def _tenant(self, name: str) -> _Tenant[T]:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = _Tenant(self._least(), self._tick())
            self._forget_idle(room=1)
            self._tenants[name] = tenant
        return tenant

    def _least(self) -> float:
        """Return where a tenant begins that has been idle."""
        name = self._first()
        if name is None:
            name = self._last_left
        return self._tenants[name].service if name is not None else 0.0

    def _first(self) -> str | None:
        """Return the least served tenant that has something waiting; bring its entry up to date."""
        while self._ranks:
            rank, name = self._ranks[0]
            tenant = self._tenants[name]
            if not tenant.items:
                heapq.heappop(self._ranks)
                tenant.is_ranked = False
            elif rank != tenant.rank:
                heapq.heappop(self._ranks)
                tenant.is_ranked = False
                self._rank(name, tenant)
            else:
                return name
        return None

    def _rank(self, name: str, tenant: _Tenant[T]) -> None:
        if not tenant.is_ranked:
            tenant.is_ranked = True
            heapq.heappush(self._ranks, (tenant.rank, name))

    def _forget_idle(self, room: int = 0) -> None:
        """Where there are too many tenants, forget idle ones: they come back at the least counter.

        All those go that lose nothing by it; of the others, as many as must, those first that lose
        least. The one that left last stays, for its counter is where others begin.
        """
        if len(self._tenants) + room <= self._max_tenants:
            return
        least = self._least()
        idle = sorted(
            (tenant.service, name)
            for name, tenant in self._tenants.items()
            if not tenant.items and name != self._last_left
        )
        for service, name in idle:
            if service > least and len(self._tenants) + room <= self._max_tenants:
                break
            del self._tenants[name]
        self._ranks = [entry for entry in self._ranks if entry[-1] in self._tenants]
        heapq.heapify(self._ranks)
