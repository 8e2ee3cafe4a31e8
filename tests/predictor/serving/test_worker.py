"""The engine's process by itself."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from bench.bare_engine import bare_engine, engine_options
from kserve_llamacpp.wire.frames import Output, SamplingParams, Submit

pytestmark = pytest.mark.model

HIGH_DESCRIPTOR = 1500


def test_a_socket_with_a_high_number(model_path: Path) -> None:
    """A server with more than a thousand connections can start an engine and be answered by it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH_DESCRIPTOR + 1), hard))
    sizes = ("--n_ctx=512", "--n_batch=64", "--n_threads=1", "--max_sequences=1")
    ours, theirs = socket.socketpair()
    high = socket.socket(fileno=os.dup2(theirs.fileno(), HIGH_DESCRIPTOR))
    theirs.close()
    with bare_engine(engine_options(model_path, *sizes), (ours, high)) as engine:
        engine.send(Submit(1, "r", "Once upon", 3, SamplingParams(temperature=0)))
        tokens: list[int] = []
        while len(tokens) < 3:
            step = engine.next_step()
            assert not step.events or 0 < step.stats.step_seconds < 10
            tokens += [token for e in step.events if isinstance(e, Output) for token in e.tokens]
    assert engine.exit_status == 0
