"""What stands between client and upstream: ours, and those that it is measured beside."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.proxy.children import Family, Processors, running, wait_for
from bench.proxy.compiled import Wire
from bench.proxy.haproxy import Haproxy
from bench.servers import OURS

RAW = "raw upstream"
HAPROXY = "haproxy"
BARE = "bare pass-through"
LITELLM = "LiteLLM"
START_SECONDS = 120.0
_PASS_THROUGH = Path(__file__).with_name("pass_through.py")
_TIMEOUT_SECONDS = 20.0
_HEADERS = {"content-type": "application/json"}
_BODY = json.dumps({"model": "bench", "messages": [{"role": "user", "content": "every=0"}]})


@dataclass(frozen=True)
class Server:
    """A running server on a port of this machine; `start_seconds` until its first answer."""

    name: str
    port: int
    family: Family
    start_seconds: float = 0.0


@dataclass(frozen=True)
class Peer:
    """How to start a proxy; `command` is made from the port and a folder for its files."""

    name: str
    command: Callable[[int, Path], list[str | Path]]
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def running(self, wire: Wire, processors: Processors) -> Iterator[Server]:
        """Run it in the block, ready; raises ServerFailed."""
        port = _free_port()
        with tempfile.TemporaryDirectory() as folder:
            command = [wire.child, processors.proxy, *self.command(port, Path(folder))]
            began = time.perf_counter()
            with running(self.name, command, self.environment) as (process, log):
                wait_for(
                    lambda: _answers(port),
                    process,
                    START_SECONDS,
                    lambda: f"{self.name} did not start:\n{log()}",
                )
                seconds = time.perf_counter() - began
                yield Server(self.name, port, Family(process.pid), seconds)


def ours(upstream_port: int, num_streams: int) -> Peer:
    """Return our proxy with its defaults: all middleware, metrics and the access log."""

    def command(port: int, _: Path) -> list[str | Path]:
        return [
            *(sys.executable, "-m", "openai_proxy", "--quiet", "--drain-delay-seconds", "0"),
            *("--host", "127.0.0.1", "--port", str(port), "--upstream-url", _url(upstream_port)),
            *("--max-upstream-connections", str(num_streams + 100)),
        ]

    return Peer(OURS, command)


def bare(upstream_port: int) -> Peer:
    """Return the pass-through that does nothing else."""

    def command(port: int, _: Path) -> list[str | Path]:
        return [sys.executable, _PASS_THROUGH, str(port), _url(upstream_port)]

    return Peer(BARE, command)


def haproxy(upstream_port: int, num_streams: int, program: Haproxy) -> Peer:
    """Return haproxy with one thread."""

    def command(port: int, folder: Path) -> list[str | Path]:
        config = folder / "haproxy.cfg"
        config.write_text(
            f"""\
global
    nbthread 1
    maxconn {num_streams + 100}
defaults
    mode http
    option http-no-delay
    timeout connect 5s
    timeout client 600s
    timeout server 600s
listen proxy
    bind 127.0.0.1:{port}
    http-reuse always
    server upstream 127.0.0.1:{upstream_port}
"""
        )
        return [program.path, "-db", "-q", "-f", config]

    return Peer(HAPROXY, command, program.environment)


def litellm(upstream_port: int, program: Path) -> Peer:
    """Return LiteLLM's proxy with its defaults: one worker, one model, no database."""

    def command(port: int, folder: Path) -> list[str | Path]:
        upstream = {
            "model": "openai/bench",
            "api_base": f"{_url(upstream_port)}/v1",
            "api_key": "unused",
        }
        config = folder / "config.yaml"  # JSON is YAML
        config.write_text(
            json.dumps({"model_list": [{"model_name": "bench", "litellm_params": upstream}]})
        )
        return [program, "--config", config, "--host", "127.0.0.1", "--port", str(port)]

    environment = {
        # else it fetches a list of prices at its start
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # no keys, as ours and the others
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    return Peer(LITELLM, command, environment)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _answers(port: int) -> bool:
    """Whether a server gives a plain answer; waits for it where the server lets it wait."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("POST", "/v1/chat/completions", _BODY, _HEADERS)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    else:
        return answer.status == 200
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
