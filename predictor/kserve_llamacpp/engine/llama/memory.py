"""The cells of llama.cpp's memory: shared, cut, saved and restored by sequence id."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

from kserve_llamacpp.engine.llama.library import llama

_MAX_IDS = 256  # LLAMA_MAX_SEQ


class LlamaMemory:
    """A `Memory` over a context; owner: the backend.

    In a unified cache of attention alone, ids from `num_slots` up may hold cells, though they are
    no slots; only ids below `n_seq_max` can be saved, so the one behind the slots is kept for that.

    With a sliding window llama.cpp writes over cells which their owner's latest token does not see
    any more, wherever it comes across them, unless they have two owners. Where cells are shared,
    each id has a twin that owns the same cells: or a prefix would have gaps that cannot be seen.
    """

    def __init__(self, context: Any, num_slots: int, can_park: bool, window: int) -> None:
        """`can_park`: ids above the slots may hold cells; `window` of attention, 0 for none."""
        self._context = context
        self._handle = llama.llama_get_memory(context)
        self._num_slots = num_slots
        self._window = window
        num_batch_ids = self.num_batch_ids(num_slots, can_park, window)
        self._spare = num_batch_ids - 1 if can_park else None
        self.first_holder = num_slots + 1
        self.num_ids = _MAX_IDS if can_park else num_slots
        self.slot_twin: int | None = None
        self._holder_twin = 0
        if can_park and window:
            self.slot_twin = num_slots
            self.first_holder = num_batch_ids
            self._holder_twin = (_MAX_IDS - num_batch_ids) // 2
            self.num_ids = self.first_holder + self._holder_twin

    @staticmethod
    def num_batch_ids(num_slots: int, can_park: bool, window: int) -> int:
        """Return how many ids batches and states may name: `n_seq_max`."""
        if not can_park:
            return num_slots
        return 2 * num_slots + 1 if window else num_slots + 1

    @classmethod
    def can_park(cls, num_slots: int, window: int) -> bool:
        """Whether there are enough ids for so many slots, and some for what is parked."""
        return cls.num_batch_ids(num_slots, True, window) + 2 <= _MAX_IDS

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` own the cells of `source` at positions from `start` to before `end`, too."""
        for owner in self._owners(target):
            llama.llama_memory_seq_cp(self._handle, source, owner, start, end)

    def cut(self, id: int, start: int, end: int | None = None) -> None:
        """Take cells from a sequence, from `start` to before `end`; None: to its last one."""
        for owner in self._owners(id):
            llama.llama_memory_seq_rm(self._handle, owner, start, -1 if end is None else end)

    def drop(self, id: int) -> None:
        """Take all cells from a sequence."""
        self.cut(id, -1)

    def holds(self, id: int, length: int) -> bool:
        """Whether a sequence has every cell that computing on from its first `length` needs."""
        if length == 0 or not self._window:
            return True
        first = llama.llama_memory_seq_pos_min(self._handle, id)
        last = llama.llama_memory_seq_pos_max(self._handle, id)
        return bool(0 <= first <= max(0, length - self._window + 1) and last >= length - 1)

    def size(self, id: int) -> int:
        """Return how many bytes a copy of a sequence's cells takes."""
        with self._nameable(id) as name:
            return int(llama.llama_state_seq_get_size(self._context, name))

    def save(self, id: int) -> bytearray | None:
        """Copy a sequence's cells to host memory; None when that fails."""
        with self._nameable(id) as name:
            size = llama.llama_state_seq_get_size(self._context, name)
            state = bytearray(size)
            data = (ctypes.c_uint8 * size).from_buffer(state)
            written = llama.llama_state_seq_get_data(self._context, data, size, name)
            return state if written == size else None

    def restore(self, id: int, state: bytearray) -> bool:
        """Give a sequence the cells that were saved, in place of those it has; False: no room."""
        data = (ctypes.c_uint8 * len(state)).from_buffer(state)
        return bool(llama.llama_state_seq_set_data(self._context, data, len(state), id) > 0)

    def clear(self) -> None:
        """Forget everything."""
        llama.llama_memory_clear(self._handle, False)

    @contextlib.contextmanager
    def _nameable(self, id: int) -> Iterator[int]:
        """Lend an id that states may name, with the same cells."""
        if self._spare is None or id < self._spare:
            yield id
            return
        self.share(id, self._spare, -1, -1)
        yield self._spare
        self.drop(self._spare)

    def _owners(self, id: int) -> tuple[int, ...]:
        if self.slot_twin is None or id == self._spare:
            return (id,)
        return (id, id + (self.slot_twin if id < self._num_slots else self._holder_twin))
