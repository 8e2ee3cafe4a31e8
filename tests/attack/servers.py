"""The servers that are attacked: each a process and, where one can be made, in its own cgroup."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.attack.memory import MIB, MemoryGroup, make_group
from tests.attack.wire import Answer, ask
from tests.processes import NUM_THREADS, Server, descendants

PREDICTOR_BYTES = 1024 * MIB  # manifests/kserve/smollm2
PROXY_BYTES = 256 * MIB  # less than is shipped: the bounds follow the cgroup
_WORKER = "kserve_llamacpp.engine.worker"
_DEATHS = re.compile(rb"^kserve_llamacpp:engine_deaths_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """A server that is attacked: the proxy, or the predictor itself."""

    name: str
    url: str
    server: Server
    group: MemoryGroup | None
    predictor: Target | None = None  # behind it, where it is a proxy
    grpc_port: int | None = None

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """Send one request."""
        return ask(self.url, method, path, body, **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        """Send one POST."""
        return self.ask("POST", path, body, **more)

    @property
    def pids(self) -> list[int]:
        """The server's own process, and the engines below it."""
        return [self.server.pid, *self._engines()]

    @property
    def num_deaths(self) -> int:
        """How many engines have died, as the predictor counts them."""
        found = _DEATHS.findall(self.ask("GET", "/metrics").body)
        return sum(int(float(value)) for value in found)

    def engine_pid(self) -> int:
        """Return the process id of the engine."""
        (pid,) = self._engines()
        return pid

    def _engines(self) -> list[int]:
        found = []
        for process in descendants(self.server.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if _WORKER in process.cmdline():
                    found.append(process.pid)
        return found

    def tracebacks(self) -> list[str]:
        """Return what the log has of exceptions that nobody caught."""
        return [line for line in self.server.text if "Traceback" in line]


@contextlib.contextmanager
def started(
    command: list[str], max_bytes: int | None, env: Mapping[str, str] | None = None
) -> Iterator[tuple[Server, MemoryGroup | None]]:
    """Run a server until the block ends."""
    group = None if max_bytes is None else make_group(max_bytes)
    prefix = [] if group is None else group.prefix
    try:
        with Server([*prefix, *command], env=dict(env or {})) as server:
            yield server, group
    finally:
        if group is not None:
            group.remove()


@contextlib.contextmanager
def predictor(
    model_path: Path,
    *flags: str,
    max_bytes: int | None = PREDICTOR_BYTES,
    env: Mapping[str, str] | None = None,
    is_ready: bool = True,
    has_grpc: bool | None = False,
) -> Iterator[Target]:
    """Run a predictor with a model; with `has_grpc` None no flag speaks of gRPC."""
    grpc_port = free_port() if has_grpc else None
    grpc = () if has_grpc is None else (f"--enable_grpc={str(has_grpc).lower()}",)
    command = [
        *(sys.executable, "-m", "kserve_llamacpp", "--model_name=smollm2"),
        *(f"--model_dir={model_path}", "--http_host=127.0.0.1", "--http_port=0"),
        *("--log_format=json", "--drain_delay_seconds=0", f"--n_threads={NUM_THREADS}"),
        *grpc,
        *((f"--grpc_port={grpc_port}",) if grpc_port else ()),
        *flags,
    ]
    with started(command, max_bytes, env) as (server, group):
        port = server.wait_for("http_listening")["port"]
        if is_ready:
            server.wait_for("model_ready")
        yield Target("predictor", f"http://127.0.0.1:{port}", server, group, grpc_port=grpc_port)


@contextlib.contextmanager
def proxy(
    *flags: str,
    max_bytes: int | None = PROXY_BYTES,
    env: Mapping[str, str] | None = None,
    behind: Target | None = None,
    is_ready: bool = True,
) -> Iterator[Target]:
    """Run a proxy."""
    command = [
        *(sys.executable, "-m", "openai_proxy", "--host=127.0.0.1", "--port=0"),
        *("--log-format=json", "--drain-delay-seconds=0", *flags),
    ]
    with started(command, max_bytes, env) as (server, group):
        url = f"http://127.0.0.1:{server.wait_for('listening')['port']}"
        if is_ready:
            wait_until(lambda: ask(url, "GET", "/health/ready").status == 200, 60)
        yield Target("proxy", url, server, group, behind)


def wait_until(condition: Any, seconds: float, every: float = 0.1) -> float:
    """Wait for a condition; return the seconds that it took, fail when it stays false."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s"
        time.sleep(every)
    return time.monotonic() - began


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tekken_model(model_path: Path, folder: Path) -> Path:
    """Copy the model with Tekken's pre-tokenizer instead of its own, whose name is as long."""
    data = model_path.read_bytes()
    key = b"tokenizer.ggml.pre"
    at = data.index(key) + len(key) + 4 + 8  # the value's kind and length
    assert data[at : at + 6] == b"smollm"
    copy = folder / "tekken.gguf"
    with copy.open("wb") as file:
        file.write(data[:at] + b"tekken" + data[at + 6 :])
    return copy
