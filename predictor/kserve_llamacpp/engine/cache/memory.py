"""What the scheduler asks of the KV cache, and what the KV cache asks of the model's memory."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Protocol

from kserve_llamacpp.engine.sequence import Sequence

MIN_SHARED = 4  # tokens: for fewer, a node or a copy of its own is not worth its keeping


class Memory(Protocol):
    """The cells of llama.cpp's memory, each owned by one or several sequence ids.

    Ids below the number of slots are those of running sequences; those from `first_holder` to
    before `num_ids` may hold cells that nobody computes on.
    """

    first_holder: int
    num_ids: int

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` own the cells of `source` at positions from `start` to before `end`, too."""
        ...

    def cut(self, id: int, start: int, end: int | None = None) -> None:
        """Take cells from a sequence, from `start` to before `end`; None: to its last one."""
        ...

    def drop(self, id: int) -> None:
        """Take all cells from a sequence."""
        ...

    def holds(self, id: int, length: int) -> bool:
        """Whether a sequence has every cell of its first `length` positions."""
        ...

    def size(self, id: int) -> int:
        """Return how many bytes a copy of a sequence's cells takes, at most."""
        ...

    def save(self, id: int) -> bytearray | None:
        """Copy a sequence's cells to host memory; None when that fails."""
        ...

    def restore(self, id: int, state: bytearray) -> bool:
        """Give a sequence the cells that were saved, in place of those it has; False: no room."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...


@dataclass
class CacheStats:
    """Counters of a cache since they were taken last, in tokens."""

    queries: int = 0
    hits: int = 0
    evictions: int = 0
    host_hits: int = 0


@dataclass(frozen=True)
class Known:
    """How much of a prompt is in memory: all of it, and what running sequences use of that.

    `to_restore` is how many cells the state takes that it would be brought back from, if any.
    """

    length: int
    in_use: int
    to_restore: int = 0


class KVCache(Protocol):
    """Who owns which cells; owner: the scheduler.

    `num_shared` of a running sequence counts the cells at its start that the cache owns; the
    others are its own, and counted by the scheduler.
    """

    stats: CacheStats
    num_cells: int
    can_publish: bool  # whether a running sequence can share a part of what it has

    @property
    def num_locked(self) -> int:
        """How many of the cache's cells running sequences use."""
        ...

    @property
    def num_parked(self) -> int:
        """How many of the cache's cells nobody uses: they can be evicted."""
        ...

    @property
    def host_bytes(self) -> int:
        """How much the host tier holds."""
        ...

    def known(self, sequence: Sequence) -> Known:
        """Return how many of a waiting sequence's tokens need not be computed. Changes nothing."""
        ...

    def admit(self, sequence: Sequence, num_free: int) -> int:
        """Give a sequence, which has got a slot, the longest prefix that is known.

        Returns how many tokens of it the sequence's owner has used before. `num_free` cells are
        nobody's, or the slot's own: where cells are shared, more are evicted if a state must be
        restored.
        """
        ...

    def move(self, sequence: Sequence, slot: int) -> bool:
        """Bring a running sequence's cells into another slot; False: it stays where it is."""
        ...

    def publish(self, sequence: Sequence, length: int, num_free: int) -> bool:
        """Make the first `length` computed tokens of a running sequence known to others.

        False when this memory cannot. `num_free` cells are nobody's.
        """
        ...

    def leave(self, sequence: Sequence, keep: bool, num_free: int) -> None:
        """Take a sequence's cells; with `keep`, what it computed stays known."""
        ...

    def roll_back(self, sequence: Sequence) -> bool:
        """Take from a running sequence what is behind its computed tokens; False: impossible."""
        ...

    def evict(self, count: int) -> int:
        """Free so many cells that nobody uses, or as many as there are; return how many."""
        ...

    def stepped(self, num_rows: int) -> None:
        """Take note that a step computed so many rows, each beside all parked cells."""
        ...

    def check_integrity(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless everything is accounted for exactly once."""
        ...


class Salted(Protocol):
    """Tokens, of which the first `num_unsalted` are shared whatever the salt."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def cache_salt(self) -> str: ...
    @property
    def num_unsalted(self) -> int: ...


def shared_length(left: Salted, right: Salted, limit: int) -> int:
    """Return how many tokens two may share: equal ones under one salt, at most `limit`."""
    if (left.cache_salt, left.num_unsalted) != (right.cache_salt, right.num_unsalted):
        limit = min(limit, left.num_unsalted, right.num_unsalted)
    return common_length(left.tokens, right.tokens, limit)


def common_length(left: Tokens[int], right: Tokens[int], limit: int | None = None) -> int:
    """Return how many tokens two lists have in common at their start, at most `limit`."""
    most = min(len(left), len(right))
    if limit is not None:
        most = min(most, limit)
    if left[:most] == right[:most]:
        return most
    low, high = 0, most  # the first `low` are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
