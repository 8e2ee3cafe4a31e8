"""The cells of llama.cpp's memory: shared, cut, saved and restored by sequence id."""

from __future__ import annotations

import ctypes
from typing import Any

from kserve_llamacpp.engine.backend.library import llama

_MAX_IDS = 256  # LLAMA_MAX_SEQ


class LlamaMemory:
    """A `Memory` over a context; owner: the backend.

    In a unified cache of attention alone, ids from `num_slots` up may hold cells, though batches
    may not name them; only ids below `n_seq_max` can be saved, so the one behind the slots is
    kept for that.
    """

    def __init__(self, context: Any, num_slots: int, can_park: bool, has_window: bool) -> None:
        """`can_park`: ids above the slots may hold cells; `has_window`: cells get overwritten."""
        self._context = context
        self._handle = llama.llama_get_memory(context)
        self._has_window = has_window
        self._spare = num_slots if can_park else None
        self.first_holder = num_slots + 1
        self.num_ids = _MAX_IDS if can_park else num_slots

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` own the cells of `source` at positions from `start` to before `end`, too."""
        llama.llama_memory_seq_cp(self._handle, source, target, start, end)

    def cut(self, id: int, start: int, end: int | None = None) -> None:
        """Take cells from a sequence, from `start` to before `end`; None: to its last one."""
        llama.llama_memory_seq_rm(self._handle, id, start, -1 if end is None else end)

    def drop(self, id: int) -> None:
        """Take all cells from a sequence."""
        llama.llama_memory_seq_rm(self._handle, id, -1, -1)

    def holds(self, id: int, length: int) -> bool:
        """Whether a sequence has every cell of its first `length` positions."""
        if length == 0 or not self._has_window:
            return True
        first = llama.llama_memory_seq_pos_min(self._handle, id)
        return bool(first == 0 and llama.llama_memory_seq_pos_max(self._handle, id) >= length - 1)

    def save(self, id: int) -> bytearray | None:
        """Copy a sequence's cells to host memory; None when that fails."""
        if self._spare is None or id < self._spare:
            return self._save(id)
        self.share(id, self._spare, -1, -1)
        state = self._save(self._spare)
        self.drop(self._spare)
        return state

    def restore(self, id: int, state: bytearray) -> bool:
        """Give a sequence the cells that were saved, in place of those it has; False: no room."""
        data = (ctypes.c_uint8 * len(state)).from_buffer(state)
        return bool(llama.llama_state_seq_set_data(self._context, data, len(state), id) > 0)

    def _save(self, id: int) -> bytearray | None:
        size = llama.llama_state_seq_get_size(self._context, id)
        state = bytearray(size)
        data = (ctypes.c_uint8 * size).from_buffer(state)
        written = llama.llama_state_seq_get_data(self._context, data, size, id)
        return state if written == size else None

    def clear(self) -> None:
        """Forget everything."""
        llama.llama_memory_clear(self._handle, False)
