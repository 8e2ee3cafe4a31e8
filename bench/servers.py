"""The servers that are measured: started with the same model, context, slots and threads."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODEL_NAME = "bench"
START_SECONDS = 120.0


class ServerFailed(Exception):
    """A server did not come up; the text says which, and shows the end of its log."""


@dataclass(frozen=True)
class Setup:
    """What all servers are given alike: sizes in tokens, sequences and threads."""

    model_path: Path
    n_ctx: int
    num_slots: int
    num_threads: int


@dataclass(frozen=True)
class Target:
    """A server to measure, at an OpenAI base URL."""

    name: str
    base_url: str
    model: str = MODEL_NAME


@contextlib.contextmanager
def ours(setup: Setup) -> Iterator[Target]:
    """Run our predictor."""
    port = _free_port()
    command = [
        *(sys.executable, "-m", "kserve_llamacpp", f"--model_dir={setup.model_path}"),
        *(f"--model_name={MODEL_NAME}", "--http_host=127.0.0.1", f"--http_port={port}"),
        *("--enable_grpc=false", "--drain_delay_seconds=0", "--log_level=warning"),
        *(f"--n_ctx={setup.n_ctx}", f"--max_sequences={setup.num_slots}"),
        f"--n_threads={setup.num_threads}",
    ]
    with _running("ours", command, f"http://127.0.0.1:{port}/v1/models/{MODEL_NAME}"):
        yield Target("ours", f"http://127.0.0.1:{port}/v1")


@contextlib.contextmanager
def llama_server(setup: Setup, binary: Path) -> Iterator[Target]:
    """Run llama.cpp's own server."""
    port = _free_port()
    command = [
        *(str(binary), "-m", str(setup.model_path), "--host", "127.0.0.1", "--port", str(port)),
        *("-np", str(setup.num_slots), "-c", str(setup.n_ctx), "--kv-unified"),
        *("-t", str(setup.num_threads), "-tb", str(setup.num_threads), "--no-webui"),
    ]
    with _running("llama-server", command, f"http://127.0.0.1:{port}/health"):
        yield Target("llama-server", f"http://127.0.0.1:{port}/v1")


@contextlib.contextmanager
def _running(name: str, command: list[str], ready_url: str) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(ready_url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(max(0, log.tell() - 2000), os.SEEK_SET)
                    raise ServerFailed(
                        f"{name} did not start:\n{log.read().decode('utf-8', 'replace')}"
                    )
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own loopback URL
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
