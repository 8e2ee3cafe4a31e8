"""The slots of running sequences: with cells of their own, or over a pool of cells."""

from __future__ import annotations

import heapq


class Slots:
    """Which slots are free; owner: the scheduler.

    With an `own_length`, the first `num_sequences` slots have cells for so many tokens each to
    themselves, and as many slots behind them share a pool; without one, all share it. The lowest
    free one is taken: of split cells llama.cpp computes those of neighbouring slots together.
    """

    def __init__(self, num_sequences: int, own_length: int = 0) -> None:
        self.own_length = own_length
        self._num_own = num_sequences if own_length else 0
        self._num_slots = self._num_own + num_sequences
        self._own = list(range(self._num_own))
        self._pooled = list(range(self._num_own, self._num_slots))

    @property
    def num_own_cells(self) -> int:
        """How many cells slots have to themselves, all together."""
        return self._num_own * self.own_length

    def fits(self, length: int) -> bool:
        """Whether a sequence of so many tokens fits into cells of its own."""
        return length <= self.own_length

    def is_pooled(self, slot: int) -> bool:
        """Whether a slot takes its cells from the pool."""
        return slot >= self._num_own

    def take(self, is_pooled: bool) -> int:
        """Return a free slot, which is then taken; there must be one."""
        return heapq.heappop(self._pooled if is_pooled else self._own)

    def give_back(self, slot: int) -> None:
        """Make a slot free again."""
        heapq.heappush(self._pooled if self.is_pooled(slot) else self._own, slot)

    def check_integrity(self, taken: list[int]) -> None:
        """Raise AssertionError unless every slot is either free or taken, once."""
        assert sorted([*self._own, *self._pooled, *taken]) == list(range(self._num_slots))
