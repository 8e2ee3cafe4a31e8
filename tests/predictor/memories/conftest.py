"""Tiny models in this process, loaded once: tests of one kind use one after another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.predictor.memories.model_run import Load, RecordingBackend


@pytest.fixture(scope="session")
def load(tiny_models: dict[str, Path]) -> Load:
    """Return the backend of an architecture and settings; each is loaded once."""
    loaded: dict[tuple[str, int, bool, bool], RecordingBackend] = {}

    def get(
        architecture: str, n_ctx: int = 4096, is_split: bool = False, is_exact: bool = False
    ) -> RecordingBackend:
        key = (architecture, n_ctx, is_split, is_exact)
        if key not in loaded:
            loaded[key] = RecordingBackend(tiny_models[architecture], *key[1:])
        return loaded[key]

    return get
