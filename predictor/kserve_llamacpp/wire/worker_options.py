"""What the engine's process is told at its start; apart from it, for the server writes it."""

from __future__ import annotations

from typing import Literal

import msgspec

KVCacheLayout = Literal["auto", "unified", "split", "split+pool"]
FlashAttention = Literal["auto", "on", "off"]


class WorkerOptions(msgspec.Struct, frozen=True):
    """All that the engine's process is told at its start; `host_cache_mib` None: as it fits."""

    model_path: str
    n_ctx: int
    n_batch: int
    n_threads: int
    n_gpu_layers: int
    max_sequences: int
    kv_cache: KVCacheLayout
    is_deterministic: bool
    host_cache_mib: int | None
    target_step_ms: int
    log_level: str
    log_format: str
    flash_attn: FlashAttention = "auto"
