"""An engine without a server, when it fails."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from bench.bare_engine import EngineFailed, bare_engine, engine_options
from bench.decoding import Decoding
from bench.step_times import Stepper

SIZES = ("--n_ctx=256", "--n_threads=1", "--max_sequences=2", "--n_batch=64")


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The engine's own sentence says why."""
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 64)
    with (
        pytest.raises(EngineFailed, match=r"broken\.gguf"),
        bare_engine(engine_options(file, *SIZES)),
    ):
        pass


@pytest.mark.model
def test_an_engine_that_dies(model_path: Path) -> None:
    """Who waits for it is told, instead of waiting on."""
    with bare_engine(engine_options(model_path, *SIZES)) as engine:
        psutil.Process(engine.pid).kill()
        with pytest.raises(EngineFailed, match="the engine ended"):
            engine.next_step()
    assert engine.exit_status == -9


@pytest.mark.model
def test_only_steps_in_which_all_decode_are_measured(model_path: Path) -> None:
    """Sequences that are added stay; one that ends is an error, for the rest would be faster."""
    with bare_engine(engine_options(model_path, *SIZES)) as engine:
        decoding = Decoding(engine, seed=1)
        for num_sequences in (1, 2):
            decoding.add(1, prompt_tokens=20, max_tokens=30)
            stats = decoding.step().stats
            assert (stats.decode_tokens, stats.prefill_tokens) == (num_sequences, 0)
            assert stats.step_seconds > 0
        with pytest.raises(EngineFailed, match="ended before"):
            [decoding.step() for _ in range(30)]


@pytest.mark.model
def test_an_engine_stands_still_while_it_is_not_asked(model_path: Path) -> None:
    """It takes no time on the cores, goes on where it was, and leaves at the end."""
    with bare_engine(engine_options(model_path, *SIZES)) as engine:
        process = psutil.Process(engine.pid)
        stepper = Stepper(engine, num_tokens=20, max_tokens=200, seed=1)
        stepper.add(2)
        with engine.awake():
            time.sleep(0.02)  # so that it is stopped in the middle of a step
        time.sleep(0.1)
        before = process.cpu_times()
        time.sleep(1)
        assert process.status() == psutil.STATUS_STOPPED
        assert process.cpu_times() == before
        assert 0 < stepper.milliseconds(1) < 1000, "the pause is no part of a step"
    assert engine.exit_status == 0
