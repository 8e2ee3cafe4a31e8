"""The array of candidates that llama.cpp's samplers work on."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from kserve_llamacpp.engine.llama.library import llama

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """Room for a whole vocabulary, made once; owner: the backend, used by one draw at a time."""

    def __init__(self, n_vocab: int) -> None:
        self._room = np.zeros(n_vocab, _CANDIDATE)
        self._start = self._room.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array()
        self._pointer = ctypes.pointer(self._array)

    def fill(self, ids: npt.NDArray[Any], logits: npt.NDArray[np.float32]) -> None:
        """Make these tokens the candidates, in this order."""
        count = len(ids)
        self._room["id"][:count] = ids
        self._room["logit"][:count] = logits
        self._array.data = self._start  # samplers may move it
        self._array.size = count
        self._array.selected = -1
        self._array.sorted = False

    def apply(self, sampler: Any) -> None:
        """Let a sampler change, sort, drop or choose candidates."""
        llama.llama_sampler_apply(sampler, self._pointer)

    def selected(self) -> int:
        """Return the token that a sampler has chosen."""
        assert 0 <= self._array.selected < self._array.size
        return int(self._array.data[self._array.selected].id)
