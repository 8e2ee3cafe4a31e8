"""Deterministic mode under load: a short form with a tiny model, a long one with the real model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.predictor.tiny_models import write_tiny_model
from tests.processes import Predictor
from tests.soak.company import Load, check

SHORT = Load(
    num_prompts=64,
    words=(2, 20),
    long_words=(110, 140),  # a tiny model's token is a letter
    max_tokens=(4, 40),
    num_clients=8,
    num_kills=1,
)
LONG = Load(
    num_prompts=200,
    words=(10, 140),
    long_words=(500, 900),
    max_tokens=(4, 32),
    num_clients=8,
    num_kills=2,
)


@pytest.mark.model
async def test_short(tmp_path: Path) -> None:
    """A tiny model gives the same bytes alone and in company, whatever happens meanwhile."""
    flags = ("--n_threads=1", "--n_ctx=4096", "--max_sequences=4", "--host_cache_mib=1")
    with Predictor(write_tiny_model(tmp_path, "llama"), "--deterministic", *flags) as server:
        server.ready()
        counted = await check(server, SHORT)
        server.wait_for("self_test_passed", nth=2)
    _assert_happened(counted, SHORT)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_long(model_path: Path) -> None:
    """200 prompts give the same bytes alone and in company with the real model."""
    flags = ("--n_ctx=8192", "--max_sequences=4", "--host_cache_mib=64")
    began = time.monotonic()
    with Predictor(model_path, "--deterministic", *flags) as server:
        server.ready()
        counted = await check(server, LONG)
        server.wait_for("self_test_passed", nth=3)
    print({**counted, "seconds": round(time.monotonic() - began)})
    _assert_happened(counted, LONG)


def _assert_happened(counted: dict[str, float], load: Load) -> None:
    assert counted["cached_tokens"] > 0
    assert counted["evictions"] > 0
    assert counted["preemptions"] > 0
    assert counted["deaths"] == load.num_kills
