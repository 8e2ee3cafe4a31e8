"""The servers that are measured: started with the same model, context, slots and threads."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import psutil

MODEL_NAME = "bench"
OURS = "ours"
LLAMA_SERVER = "llama-server"
EXAMPLE_SERVER = "example server"
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
    our_args: tuple[str, ...] = ()

    @property
    def engine_flags(self) -> tuple[str, ...]:
        """What our engine is told besides its sizes."""
        return (f"--n_threads={self.num_threads}", *self.our_args)


@dataclass(frozen=True)
class Target:
    """A server to measure, at an OpenAI base URL.

    `endless` goes into each request, so that every answer is as long as the next.
    """

    name: str
    base_url: str
    model: str = MODEL_NAME
    pid: int | None = None
    endless: Mapping[str, object] = field(default_factory=lambda: {"ignore_eos": True})

    def memory_mib(self) -> float | None:
        """Return the memory of its processes (PSS), None when they are not ours or are gone."""
        if self.pid is None:
            return None
        try:
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
            return sum(float(member.memory_full_info().pss) for member in family) / (1 << 20)
        except psutil.Error:
            return None

    def metrics(self) -> str:
        """Return the text of its /metrics, empty when it has none."""
        url = f"{self.base_url.removesuffix('/v1')}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - a server of ours
                return str(answer.read().decode("utf-8", "replace"))
        except (urllib.error.URLError, OSError):
            return ""


@contextlib.contextmanager
def ours(
    setup: Setup, name: str = OURS, environment: Mapping[str, str] | None = None
) -> Iterator[Target]:
    """Run our predictor, with these variables besides its environment's."""
    port = _free_port()
    command = [
        *(sys.executable, "-m", "kserve_llamacpp", f"--model_dir={setup.model_path}"),
        *(f"--model_name={MODEL_NAME}", "--http_host=127.0.0.1", f"--http_port={port}"),
        *("--enable_grpc=false", "--drain_delay_seconds=0", "--log_level=warning"),
        *(f"--n_ctx={setup.n_ctx}", f"--max_sequences={setup.num_slots}"),
        *setup.engine_flags,
    ]
    url = f"http://127.0.0.1:{port}/v1/models/{MODEL_NAME}"
    with _running(name, command, url, environment) as pid:
        yield Target(name, f"http://127.0.0.1:{port}/v1", pid=pid)


@contextlib.contextmanager
def llama_server(setup: Setup, binary: Path, flags: tuple[str, ...] = ()) -> Iterator[Target]:
    """Run llama.cpp's own server; `flags` are in its name."""
    name, port = with_flags(LLAMA_SERVER, flags), _free_port()
    command = [
        *(str(binary), "-m", str(setup.model_path), "--host", "127.0.0.1", "--port", str(port)),
        *("-np", str(setup.num_slots), "-c", str(setup.n_ctx), "--kv-unified"),
        *("-t", str(setup.num_threads), "-tb", str(setup.num_threads), "--no-webui"),
        *flags,
    ]
    with _running(name, command, f"http://127.0.0.1:{port}/health") as pid:
        yield Target(name, f"http://127.0.0.1:{port}/v1", pid=pid)


@contextlib.contextmanager
def example_server(setup: Setup, script: Path, mtmd_folder: Path | None) -> Iterator[Target]:
    """Run the example server of llama-cpp-python over the binding that we use.

    It imports libmtmd, which our build leaves out: `mtmd_folder` has one of the same version.
    """
    port = _free_port()
    config = {
        "server": {"host": "127.0.0.1", "port": port},
        "model": {
            "path": str(setup.model_path),
            "alias": MODEL_NAME,
            "n_ctx": setup.n_ctx,
            "n_seq_max": setup.num_slots,
            "kv_unified": True,
            "threads": setup.num_threads,
            "threads_batch": setup.num_threads,
            "store_logits": False,
        },
    }
    environment = {"MTMD_CPP_LIB": str(mtmd_folder)} if mtmd_folder else {}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        command = [sys.executable, str(script), "-C", file.name]
        url = f"http://127.0.0.1:{port}"
        with _running(EXAMPLE_SERVER, command, f"{url}/healthz", environment) as pid:
            endless = {"logit_bias": dict.fromkeys(_control_tokens(setup.model_path), -100)}
            yield Target(EXAMPLE_SERVER, f"{url}/v1", pid=pid, endless=endless)


def with_flags(name: str, flags: Sequence[str]) -> str:
    """Return how a program with these flags is called in tables."""
    return " ".join([name, *flags])


def _control_tokens(model_path: Path) -> list[str]:
    """Return the ids of the tokens that may end an answer: what has no ignore_eos bans these."""
    kinds = gguf.GGUFReader(model_path).fields["tokenizer.ggml.token_type"].contents()
    return [str(token) for token, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]


@contextlib.contextmanager
def _running(
    name: str, command: list[str], ready_url: str, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(ready_url):
                if process.poll() is not None or time.monotonic() > deadline:
                    size = log.seek(0, os.SEEK_END)
                    log.seek(max(0, size - 2000))
                    raise ServerFailed(
                        f"{name} did not start:\n{log.read().decode('utf-8', 'replace')}"
                    )
                time.sleep(0.2)
            yield process.pid
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
