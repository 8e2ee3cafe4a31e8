"""Whole sequences kept in host memory, for memories whose cells cannot be shared in parts.

A split KV cache gives each slot cells of its own; a recurrent one has a state instead of cells. In
both a prefix is brought back as a whole; the cells of a split cache can be cut behind it, a
recurrent state cannot: it serves only those who begin with all of it. Of layers with a sliding
window only the last window is saved: but for the last token, which must be computed anyway, it
cannot be cut either.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from kserve_llamacpp.engine.cache.memory import (
    MIN_SHARED,
    CacheStats,
    Known,
    Memory,
    shared_length,
)
from kserve_llamacpp.engine.cache.owners import Owners
from kserve_llamacpp.engine.sequence import Sequence


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The memory of a sequence after `tokens`, which a request of the tenant `owner` computed."""

    tokens: list[int]
    cache_salt: str
    num_unsalted: int
    owner: str
    state: bytearray


class SnapshotCache:
    """A `KVCache` that keeps what finished sequences computed; owner: the scheduler.

    All cells are the running sequences' own: `num_locked` and `num_parked` are always 0.
    """

    num_locked = 0
    num_parked = 0

    def __init__(
        self,
        memory: Memory,
        num_cells: int,
        host_bytes: int,
        can_cut: bool,
        has_window: bool = False,
    ) -> None:
        """`host_bytes` bounds what is kept; `can_cut` tells whether a sequence can go back."""
        self.num_cells = num_cells
        self.stats = CacheStats()
        self._keeps_parts = can_cut and not has_window
        self._longest_cut = math.inf if self._keeps_parts else float(can_cut)
        self.can_publish = self._keeps_parts and host_bytes > 0
        self._memory = memory
        self._max_bytes = host_bytes
        self._can_cut = can_cut
        self._kept: OrderedDict[Snapshot, None] = OrderedDict()  # least used first
        self._owners: Owners[Snapshot] = Owners()
        self._known: WeakKeyDictionary[Sequence, tuple[int, Known]] = WeakKeyDictionary()
        self._bytes = 0
        self._too_long: int | None = None  # so many tokens, or more, do not fit

    @property
    def host_bytes(self) -> int:
        """How much the host tier holds."""
        return self._bytes

    def known(self, sequence: Sequence) -> Known:
        """Return how many of a waiting sequence's tokens need not be computed."""
        num_tokens, known = self._known.get(sequence, (0, None))
        if known is None or num_tokens != len(sequence.tokens):
            snapshot, length = self._best(sequence)
            known = Known(length, 0, len(snapshot.tokens) if snapshot is not None else 0)
            self._known[sequence] = len(sequence.tokens), known
        return known

    def admit(self, sequence: Sequence, num_free: int) -> int:
        """Give a sequence, which has got a slot, the longest prefix that is known.

        Returns how many tokens of it the sequence's owner has used before.
        """
        assert sequence.slot is not None
        snapshot, length = self._best(sequence, num_free)
        if snapshot is None:
            return 0
        self._kept.move_to_end(snapshot)
        if not self._memory.restore(sequence.slot, snapshot.state):
            self._memory.drop(sequence.slot)
            return 0
        if length < len(snapshot.tokens):
            self._memory.cut(sequence.slot, length)
        if not self._memory.holds(sequence.slot, length):
            self._memory.drop(sequence.slot)
            return 0
        sequence.num_computed = length
        self.stats.host_hits += length
        num_own = self._num_own(sequence, length)
        self._owners.note(snapshot, sequence.owner, length)
        return num_own

    def move(self, sequence: Sequence, slot: int) -> bool:
        """Bring a running sequence's cells into another slot; False: it stays where it is."""
        assert sequence.slot is not None
        state = self._memory.save(sequence.slot)
        if state is None or not self._memory.restore(slot, state):
            self._memory.drop(slot)
            return False
        self._memory.drop(sequence.slot)
        sequence.slot = slot
        return True

    def publish(self, sequence: Sequence, length: int, num_free: int) -> bool:
        """Make the first `length` computed tokens of a running sequence known to others."""
        assert length <= sequence.num_computed
        if not self.can_publish or length < MIN_SHARED:
            return False
        return self._keep(sequence)

    def leave(self, sequence: Sequence, keep: bool, num_free: int) -> None:
        """Take a sequence's cells; with `keep`, what it computed stays known."""
        assert sequence.slot is not None
        if keep and sequence.num_computed >= MIN_SHARED:
            self._keep(sequence)
        self._memory.drop(sequence.slot)
        sequence.num_computed = 0

    def roll_back(self, sequence: Sequence) -> bool:
        """Take from a running sequence what is behind its computed tokens; False: impossible."""
        assert sequence.slot is not None
        if self._can_cut:
            self._memory.cut(sequence.slot, sequence.num_computed)
        return self._can_cut

    def evict(self, count: int) -> int:
        """Free nothing: no cell is without a user."""
        return 0

    def stepped(self, num_rows: int) -> None:
        """Take note that a step computed so many rows: nothing is parked beside them."""

    def check_integrity(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless everything is accounted for exactly once."""
        assert self._bytes == sum(len(snapshot.state) for snapshot in self._kept)
        assert self._bytes <= self._max_bytes
        assert all(sequence.num_shared == 0 for sequence in running)
        self._owners.check_integrity(set(self._kept))

    def _best(self, sequence: Sequence, num_free: float = math.inf) -> tuple[Snapshot | None, int]:
        """Return what fits and a sequence has most in common with, the shortest, and how much.

        The last token is left out: it must be computed, or there were no logits to draw from.
        """
        best: Snapshot | None = None
        longest = MIN_SHARED - 1
        limit = len(sequence.tokens) - 1
        for snapshot in self._kept:
            if len(snapshot.tokens) > num_free:
                continue
            length = shared_length(snapshot, sequence, limit)
            if len(snapshot.tokens) - length > self._longest_cut:
                continue
            is_shorter = best is not None and len(snapshot.tokens) < len(best.tokens)
            if length > longest or (length == longest and is_shorter):
                best, longest = snapshot, length
        return best, longest if best is not None else 0

    def _num_own(self, sequence: Sequence, limit: int) -> int:
        """Return how many of a sequence's first tokens are known, and its owner has used before."""
        counts = ((each, self._owners.count(each, sequence.owner)) for each in self._kept)
        return max(shared_length(each, sequence, min(limit, count)) for each, count in counts)

    def _keep(self, sequence: Sequence) -> bool:
        """Keep what a sequence computed, and drop what was used longest ago, or is part of it."""
        assert sequence.slot is not None
        tokens = sequence.tokens[: sequence.num_computed]
        used_by: dict[str, int] = {}
        for snapshot in list(self._kept):
            length = shared_length(snapshot, sequence, len(tokens))
            is_equal = length == len(tokens) == len(snapshot.tokens)
            if is_equal or (self._keeps_parts and length == len(tokens)):
                if is_equal:
                    self._kept.move_to_end(snapshot)
                self._owners.note(snapshot, sequence.owner, length)
                return True
            if self._keeps_parts and length == len(snapshot.tokens):
                used_by |= self._owners.used_by(snapshot)
                self._forget(snapshot)
        if self._max_bytes == 0 or (self._too_long is not None and len(tokens) >= self._too_long):
            return False
        size = self._memory.size(sequence.slot)
        if size > self._max_bytes:
            self._too_long = len(tokens)
            return False
        while self._bytes + size > self._max_bytes:
            oldest = next(iter(self._kept))
            self.stats.evictions += len(oldest.tokens)
            self._forget(oldest)
        state = self._memory.save(sequence.slot)
        if state is None:
            self._too_long = len(tokens)
            return False
        self._known.clear()
        salt, num_unsalted = sequence.cache_salt, sequence.num_unsalted
        kept = Snapshot(tokens, salt, num_unsalted, sequence.owner, state)
        self._kept[kept] = None
        self._owners.note_all(kept, used_by)
        self._bytes += len(state)
        return True

    def _forget(self, snapshot: Snapshot) -> None:
        self._known.clear()
        del self._kept[snapshot]
        self._owners.forget(snapshot)
        self._bytes -= len(snapshot.state)
