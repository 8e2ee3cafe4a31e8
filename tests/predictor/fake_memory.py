"""Cells with known contents: who owns which, what was saved, and how many there are."""

from __future__ import annotations

import json
from collections import Counter


class FakeMemory:
    """A `Memory` whose cells hold the token that was computed into them.

    It fails the test when a sequence is given two cells for a position, or a state is restored
    that was not saved. `can_cut` and `can_park` say what kind of memory it is.
    """

    def __init__(
        self,
        num_cells: int,
        num_slots: int,
        num_ids: int | None = None,
        can_cut: bool = True,
        num_own: int = 0,
        own_length: int = 0,
    ) -> None:
        """Without `num_ids` nothing can be parked.

        The first `num_own` slots have `own_length` cells each beside the `num_cells` of the others.
        """
        self._num_own = num_own
        self._own_length = own_length
        self.first_holder = num_slots
        self.num_ids = num_slots if num_ids is None else num_ids
        self.drops: Counter[int] = Counter()
        self.num_sizes = self.num_saves = self.num_restores = self.num_shares = 0
        self._num_cells = num_cells
        self._can_cut = can_cut
        self._cells: dict[int, dict[int, int]] = {}  # of each id: position -> cell
        self._tokens: dict[int, int] = {}  # of each cell
        self._next_cell = 0

    @property
    def num_used(self) -> int:
        """How many cells have an owner."""
        return self._count(0)

    @property
    def num_shared_used(self) -> int:
        """How many have one, those left out that a slot has to itself."""
        return self._count(self._num_own)

    def _count(self, first: int) -> int:
        owners = [cells for owner, cells in self._cells.items() if owner >= first]
        return len({cell for cells in owners for cell in cells.values()})

    @property
    def num_free(self) -> int:
        """How many cells have none."""
        return self._num_cells - self.num_shared_used

    def tokens(self, id: int) -> list[int]:
        """Return the tokens in a sequence's cells, by position; they must have no gap before."""
        cells = self._cells.get(id, {})
        assert sorted(cells) == list(range(len(cells))), "a gap in a sequence's positions"
        return [self._tokens[cells[position]] for position in range(len(cells))]

    def write(self, id: int, position: int, token: int) -> None:
        """Compute a token into a new cell."""
        cells = self._cells.setdefault(id, {})
        assert position == len(cells), "a row that does not follow its slot's cells"
        assert id >= self._num_own or position < self._own_length, "a slot's own cells are full"
        cells[position] = self._next_cell
        self._tokens[self._next_cell] = token
        self._next_cell += 1

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` own the cells of `source`, too."""
        assert self.num_ids > self.first_holder, "cells are shared in a memory that cannot"
        self.num_shares += 1
        cells = self._cells.setdefault(target, {})
        for position, cell in self._cells[source].items():
            if start <= position < end:
                assert position not in cells, "two cells for a position"
                cells[position] = cell

    def cut(self, id: int, start: int, end: int | None = None) -> None:
        """Take cells from a sequence."""
        assert self._can_cut, "a sequence is cut in a memory that cannot"
        cells = self._cells.get(id, {})
        for position in list(cells):
            if start <= position and (end is None or position < end):
                del cells[position]

    def drop(self, id: int) -> None:
        """Take all cells from a sequence."""
        self.drops[id] += 1
        self._cells.pop(id, None)

    def is_own(self, id: int) -> bool:
        """Whether a slot has its cells to itself."""
        return id < self._num_own

    def holds(self, id: int, length: int) -> bool:
        """Whether a sequence has every cell of its first `length` positions."""
        return set(range(length)) <= self._cells.get(id, {}).keys()

    def clear(self) -> None:
        """Forget everything."""
        self._cells.clear()

    def size(self, id: int) -> int:
        """Return how many bytes a copy of a sequence's cells takes."""
        self.num_sizes += 1
        return len(self._state(id))

    def save(self, id: int) -> bytearray | None:
        """Copy a sequence's cells to host memory."""
        self.num_saves += 1
        return self._state(id)

    def _state(self, id: int) -> bytearray:
        cells = self._cells[id]
        tokens = {position: self._tokens[cell] for position, cell in cells.items()}
        return bytearray(json.dumps(tokens).encode())

    def restore(self, id: int, state: bytearray) -> bool:
        """Give a sequence new cells with what was saved; False: no room."""
        self.num_restores += 1
        self._cells.pop(id, None)
        saved = {int(position): token for position, token in json.loads(state).items()}
        if len(saved) > (self._own_length if id < self._num_own else self.num_free):
            return False
        cells = self._cells[id] = {}
        for position, token in saved.items():
            cells[position] = self._next_cell
            self._tokens[self._next_cell] = token
            self._next_cell += 1
        return True
