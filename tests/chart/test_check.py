"""What `helm test` runs in its pods tells right answers from wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.chart.helm import CHART

HEALTHY = {"/health/live": (200, {}), "/health/ready": (200, {"status": "ready"})}
NO_MODELS = {"/v1/models": (200, {"object": "list", "data": []})}
MODELS = {"/v1/models": (200, {"object": "list", "data": [{"id": "smollm2"}]})}
REFUSAL = {"error": {"message": "There is no model here yet.", "code": "model_not_ready"}}
CHAT = "/v1/chat/completions"
Answers = dict[str, tuple[int, Any]]


class StandIn(HTTPServer):
    """A proxy that answers as it is told."""

    answers: Answers


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, body = self.server.answers.get(self.path, (404, {}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    do_POST = do_GET  # noqa: N815 - the base class looks for this name

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy() -> Iterator[StandIn]:
    with StandIn(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def check(proxy: StandIn, name: str, model: str, answers: Answers) -> bool:
    """Run one check, which looks once, and tell whether it passed."""
    proxy.answers = answers
    url = f"http://127.0.0.1:{proxy.server_port}"
    command = [sys.executable, "-W", "error", str(CHART / "files" / "check.py"), name, url, "0"]
    done = subprocess.run([*command, model], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(name), done.stderr
    return done.returncode == 0


@pytest.mark.parametrize(
    ("name", "model", "answers"),
    [
        ("health", "-", HEALTHY),
        ("models", "-", NO_MODELS),
        ("models", "smollm2", MODELS),
        ("models", "*", MODELS),
        ("chat", "-", {CHAT: (503, REFUSAL)}),
        ("chat", "smollm2", {CHAT: (200, {"choices": [{}]})}),
        ("chat", "*", {**MODELS, CHAT: (200, {"choices": [{}]})}),
    ],
)
def test_right(proxy: StandIn, name: str, model: str, answers: Answers) -> None:
    """The right answer passes."""
    assert check(proxy, name, model, answers)


@pytest.mark.parametrize(
    ("name", "model", "answers"),
    [
        ("health", "-", {**HEALTHY, "/health/ready": (503, {"status": "not_ready"})}),
        ("models", "-", {"/v1/models": (503, REFUSAL)}),
        ("models", "-", {"/v1/models": (200, b"<html>")}),
        ("models", "smollm2", NO_MODELS),
        ("chat", "-", {CHAT: (502, REFUSAL)}),
        ("chat", "-", {CHAT: (503, b"upstream connect error")}),
        ("chat", "-", {CHAT: (200, {"choices": [{}]})}),
        ("chat", "smollm2", {CHAT: (503, REFUSAL)}),
        ("chat", "smollm2", {CHAT: (200, {"choices": []})}),
    ],
)
def test_wrong(proxy: StandIn, name: str, model: str, answers: Answers) -> None:
    """A wrong answer fails."""
    assert not check(proxy, name, model, answers)


def test_nobody_there() -> None:
    """An address where nobody listens fails, and is told."""
    command = [sys.executable, str(CHART / "files" / "check.py"), "health", "http://127.0.0.1:1"]
    done = subprocess.run([*command, "0", "-"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "refused" in done.stdout
