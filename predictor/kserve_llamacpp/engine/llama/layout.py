"""How the cells of the KV cache are divided among sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kserve_llamacpp.engine.llama.library import LoadFailed
from kserve_llamacpp.wire.cells import BLOCK, whole_blocks
from kserve_llamacpp.wire.worker_options import KVCacheLayout

_LEAST_OWN = 512  # tokens; with fewer, most sequences would have to move


@dataclass(frozen=True)
class Layout:
    """`own_length` cells for each slot that has its own, else 0, and `num_pooled` for all others.

    Without a pool of its own, the pool stands for all cells.
    """

    kind: Literal["unified", "split", "split+pool"]
    num_pooled: int
    own_length: int = 0


def choose_layout(
    asked: KVCacheLayout,
    n_ctx: int,
    max_sequences: int,
    longest: int,
    can_move: bool,
    pays_for_others: bool,
) -> Layout:
    """Divide `n_ctx` cells; `longest` is what the model was trained for.

    Where a sequence's cells can be moved and attention pays for others' cells, as it does on a CPU,
    cells are divided if that shortens no sequence. Raises LoadFailed.
    """
    own_length = min(whole_blocks(longest), n_ctx // 2 // max_sequences // BLOCK * BLOCK)
    divided = Layout("split+pool", n_ctx - own_length * max_sequences, own_length)
    if asked == "auto":
        is_better_divided = can_move and pays_for_others and max_sequences > 1
        is_large = own_length >= _LEAST_OWN and divided.num_pooled >= min(longest, n_ctx)
        return divided if is_better_divided and is_large else Layout("unified", n_ctx)
    if asked != "split+pool":
        return Layout(asked, n_ctx)
    if not can_move:
        raise LoadFailed(
            "configuration",
            "--kv_cache split+pool moves sequences, which a model with a sliding window or a "
            "recurrent state does not allow: choose --kv_cache unified or split",
        )
    if own_length < BLOCK:
        least = 2 * max_sequences * BLOCK
        raise LoadFailed(
            "configuration",
            f"--kv_cache split+pool needs {least} tokens for --max_sequences {max_sequences}, "
            f"but there are {n_ctx}: raise --n_ctx to that (or give the container more memory, "
            "where --n_ctx is as much as fits), or choose --kv_cache unified",
        )
    return divided
