"""The batch that llama_decode is given."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from kserve_llamacpp.engine.backend import Row
from kserve_llamacpp.engine.llama.library import llama


class Batch:
    """The arrays behind a llama_batch, made once; owner: the backend."""

    def __init__(self, size: int, twin: int | None = None) -> None:
        """With a `twin` each cell gets a second owner: the slot's number and that."""
        self._size = size
        owners = [0] if twin is None else [0, twin]
        self._owners = np.array(owners, np.int32)
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._slot_counts = np.full(size, len(owners), np.int32)
        self._slots = np.zeros((size, len(owners)), np.int32)
        self._outputs = np.zeros(size, np.int8)
        # llama.cpp wants a pointer for each row: to the row's own elements of the slots
        self._slot_pointers = self._slots.ctypes.data + (
            self._slots.strides[0] * np.arange(size, dtype=np.uintp)
        )
        self._batch = llama.llama_batch()
        self._batch.token = self._tokens.ctypes.data_as(ctypes.POINTER(llama.llama_token))
        self._batch.embd = None
        self._batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(llama.llama_pos))
        self._batch.n_seq_id = self._slot_counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._batch.seq_id = self._slot_pointers.ctypes.data_as(
            ctypes.POINTER(ctypes.POINTER(llama.llama_seq_id))
        )
        self._batch.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def fill(self, rows: list[Row]) -> Any:
        """Write the rows into the arrays and return the batch, valid until the next call."""
        count = len(rows)
        assert count <= self._size
        self._tokens[:count] = [row.token for row in rows]
        self._positions[:count] = [row.position for row in rows]
        self._slots[:count] = np.array([row.slot for row in rows])[:, None] + self._owners
        self._outputs[:count] = [row.is_output for row in rows]
        self._batch.n_tokens = count
        return self._batch
