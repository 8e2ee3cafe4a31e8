"""Which tenants have used what is in the cache: the count of cached tokens tells only one's own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Owned(Protocol):
    """What the cache keeps: hashable by identity; its owner has computed all of its tokens."""

    @property
    def owner(self) -> str: ...
    @property
    def tokens(self) -> list[int]: ...


E = TypeVar("E", bound=Owned)


class Owners(Generic[E]):
    """Who else has used an entry, and how many of its first tokens; owner: the cache.

    At most `max_pairs` of an entry and a tenant are remembered, those used last. What is forgotten
    counts as never used: then less is told, not more.
    """

    def __init__(self, max_pairs: int = 16384) -> None:
        self._max_pairs = max_pairs
        self._pairs: OrderedDict[tuple[E, str], int] = OrderedDict()
        self._tenants: dict[E, set[str]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def count(self, entry: E, tenant: str) -> int:
        """Return how many of an entry's first tokens a tenant has used."""
        if entry.owner == tenant:
            return len(entry.tokens)
        return min(self._pairs.get((entry, tenant), 0), len(entry.tokens))

    def note(self, entry: E, tenant: str, count: int) -> None:
        """Take note that a tenant has used so many of an entry's first tokens."""
        if entry.owner == tenant:
            return
        pair = (entry, tenant)
        self._pairs[pair] = max(count, self._pairs.get(pair, 0))
        self._pairs.move_to_end(pair)
        self._tenants.setdefault(entry, set()).add(tenant)
        while len(self._pairs) > self._max_pairs:
            (oldest, forgotten), _ = self._pairs.popitem(last=False)
            self._tenants[oldest].discard(forgotten)
            if not self._tenants[oldest]:
                del self._tenants[oldest]

    def used_by(self, entry: E) -> dict[str, int]:
        """Return who has used an entry, its owner included, and how many of its first tokens."""
        tenants = [entry.owner, *self._tenants.get(entry, ())]
        return {tenant: self.count(entry, tenant) for tenant in tenants}

    def note_all(self, entry: E, used_by: dict[str, int]) -> None:
        """Take note of all who have used another entry, which begins alike."""
        for tenant, count in used_by.items():
            self.note(entry, tenant, count)

    def forget(self, entry: E) -> None:
        """Take note that an entry is gone."""
        for tenant in self._tenants.pop(entry, ()):
            del self._pairs[entry, tenant]

    def check_integrity(self, entries: set[E]) -> None:
        """Raise AssertionError unless everything that is known is of these entries."""
        assert self._tenants.keys() <= entries
        assert len(self._pairs) <= self._max_pairs
        pairs = {(entry, tenant) for entry, known in self._tenants.items() for tenant in known}
        assert pairs == self._pairs.keys()
