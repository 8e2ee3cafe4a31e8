"""The engine's process by itself."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kserve_llamacpp.engine.frames import (
    FrameReader,
    Hello,
    Output,
    Report,
    SamplingParams,
    Step,
    Submit,
    decode_report,
    encode,
)
from kserve_llamacpp.engine.worker_options import WorkerOptions

pytestmark = pytest.mark.model

HIGH_DESCRIPTOR = 1500


def test_a_socket_with_a_high_number(model_path: Path) -> None:
    """A server with more than a thousand connections can start an engine and be answered by it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH_DESCRIPTOR + 1), hard))
    options = WorkerOptions(
        model_path=str(model_path),
        n_ctx=512,
        n_batch=64,
        n_threads=1,
        n_gpu_layers=0,
        max_sequences=1,
        kv_cache="unified",
        is_deterministic=False,
        host_cache_mib=None,
        target_step_ms=200,
        log_level="warning",
        log_format="json",
    )
    ours, theirs = socket.socketpair()
    os.dup2(theirs.fileno(), HIGH_DESCRIPTOR)
    theirs.close()
    command = [sys.executable, "-m", "kserve_llamacpp.engine.worker", str(HIGH_DESCRIPTOR)]
    worker = subprocess.Popen(
        [*command, msgspec.json.encode(options).decode()], pass_fds=[HIGH_DESCRIPTOR]
    )
    os.close(HIGH_DESCRIPTOR)
    with ours:
        reports = read(ours)
        while not isinstance(next(reports), Hello):
            pass
        ours.sendall(encode(Submit(1, "r", "Once upon", 3, SamplingParams(temperature=0))))
        tokens: list[int] = []
        while len(tokens) < 3:
            report = next(reports)
            assert isinstance(report, Step)
            assert not report.events or 0 < report.stats.step_seconds < 10
            tokens += [token for e in report.events if isinstance(e, Output) for token in e.tokens]
    assert worker.wait(10) == 0


def read(sock: socket.socket):  # type: ignore[no-untyped-def]  # an endless iterator of reports
    """Yield reports as they come."""
    reader = FrameReader()
    while data := sock.recv(1 << 16):
        reports: list[Report] = [decode_report(payload) for payload in reader.feed(data)]
        yield from reports
