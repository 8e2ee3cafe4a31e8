"""Slots over one context of llama.cpp: their cells, and the batches that are computed on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kserve_llamacpp.engine.backend import DecodeFailed, KVCacheFull, Row
from kserve_llamacpp.engine.llama.batch import Batch
from kserve_llamacpp.engine.llama.library import LoadFailed, llama
from kserve_llamacpp.engine.llama.memory import LlamaMemory
from kserve_llamacpp.engine.llama.weights import Weights

_BF16 = 30  # GGML_TYPE_BF16, which the binding leaves out


@dataclass(frozen=True)
class Shape:
    """How a context is laid out: sizes in tokens, `n_ubatch` of what is computed at once."""

    num_cells: int
    num_slots: int
    is_unified: bool
    can_park: bool
    n_batch: int
    n_ubatch: int
    n_threads: int
    is_deterministic: bool
    has_flash_attention: bool | None  # None: where llama.cpp has it for the device


class Room:
    """A context and its slots, counted from 0; owner: the backend."""

    def __init__(self, weights: Weights, shape: Shape) -> None:
        """Make the context; raises LoadFailed."""
        self.num_slots = shape.num_slots
        self.num_streams = 1 if shape.is_unified else shape.num_slots
        self._is_unified = shape.is_unified
        self._context = _make_context(weights, shape)
        self.memory = LlamaMemory(
            self._context, shape.num_slots, can_park=shape.can_park, window=weights.window
        )
        self._batch = Batch(shape.n_batch, self.memory.slot_twin)
        self._places: Sequence[int] = ()  # of the batch computed last: where each row went
        self.num_cells: int = llama.llama_n_ctx(self._context)
        self.longest: int = llama.llama_n_ctx_seq(self._context)

    def decode(self, rows: list[Row]) -> None:
        """Compute a batch; raises KVCacheFull or DecodeFailed."""
        if self._is_unified:
            self._places = range(len(rows))
        else:
            rows = self._in_order(rows)
        code = llama.llama_decode(self._context, self._batch.fill(rows))
        if code == 1:
            raise KVCacheFull
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}")

    def logits(self, row: int) -> Any:
        """Return a pointer to the logits of an output row of the batch computed last."""
        return llama.llama_get_logits_ith(self._context, self._places[row])

    def synchronize(self) -> None:
        """Wait until the batch is computed."""
        llama.llama_synchronize(self._context)

    def _in_order(self, rows: list[Row]) -> list[Row]:
        """Return the rows by their slots, and note where each has gone.

        Of split cells llama.cpp computes together only those of neighbours that come in order.
        """
        order = sorted(range(len(rows)), key=lambda at: rows[at].slot)
        places = [0] * len(rows)
        for place, at in enumerate(order):
            places[at] = place
        self._places = places
        return [rows[at] for at in order]


def _make_context(weights: Weights, shape: Shape) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = shape.num_cells
    params.n_batch = shape.n_batch
    params.n_ubatch = shape.n_ubatch
    params.n_seq_max = LlamaMemory.num_batch_ids(shape.num_slots, shape.can_park, weights.window)
    params.n_outputs_max = params.n_seq_max  # the default reserves n_ubatch times the vocabulary
    params.n_threads = params.n_threads_batch = shape.n_threads
    params.kv_unified = shape.is_unified
    if shape.has_flash_attention is not None:
        params.flash_attn_type = int(shape.has_flash_attention)
    if shape.is_deterministic:  # attention has one kernel for this type, whatever the shape
        params.type_k = params.type_v = _BF16
    context = llama.llama_init_from_model(weights.handle, params)
    if not context:
        raise LoadFailed(
            "out_of_memory",
            f"llama.cpp could not set up a context of {shape.num_cells} tokens for "
            f"{shape.num_slots} sequences: lower --n_ctx, --max_sequences or "
            "--n_gpu_layers, or give the container more memory",
        )
    return context
