"""Tiny models in this process, loaded once: tests of one kind use one after another."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_llamacpp.wire.worker_options import KVCacheLayout
from tests.predictor.memories.model_run import Load, RecordingBackend


@pytest.fixture(scope="session")
def load(tiny_models: dict[str, Path]) -> Load:
    """Return the backend of an architecture and settings; each is loaded once."""
    loaded: dict[tuple[str, int, KVCacheLayout, bool, bool], RecordingBackend] = {}

    def get(
        architecture: str,
        n_ctx: int = 4096,
        kv_cache: KVCacheLayout = "unified",
        is_exact: bool = False,
        flash_attn: bool = False,
    ) -> RecordingBackend:
        key = (architecture, n_ctx, kv_cache, is_exact, flash_attn)
        if key not in loaded:
            loaded[key] = RecordingBackend(tiny_models[architecture], *key[1:])
        return loaded[key]

    return get
