"""What the engine's process is told at its start; apart from it, for the server writes it."""

from __future__ import annotations

import msgspec


class WorkerOptions(msgspec.Struct, frozen=True):
    """All that the engine's process is told at its start."""

    model_path: str
    n_ctx: int
    n_batch: int
    n_threads: int
    n_gpu_layers: int
    max_sequences: int
    prefill_tokens_beside_decode: int
    log_level: str
    log_format: str
