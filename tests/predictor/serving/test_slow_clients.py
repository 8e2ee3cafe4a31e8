"""Connections of a running predictor are bounded: the same protocol as the proxy's."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.processes import Predictor

POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(tiny_models: dict[str, Path]) -> Iterator[Predictor]:
    """A predictor that does not wait for its clients."""
    flags = ("--n_ctx=512", "--head_timeout_seconds=1", "--body_timeout_seconds=0.4")
    with Predictor(tiny_models["llama"], *flags) as server:
        yield server


def talk(server: Predictor, *parts: bytes) -> bytes:
    """Send parts as far as they are taken; return all that comes until the end."""
    received = b""
    with socket.create_connection(("127.0.0.1", httpx2.URL(server.url).port or 0), 10) as client:
        try:
            for part in parts:
                client.sendall(part)
            while part := client.recv(65536):
                received += part
        except ConnectionError:
            pass
    return received


def memory(server: Predictor) -> int:
    """The server's memory in bytes, without its engine's."""
    resident: int = psutil.Process(server.pid).memory_info().rss
    return resident


def test_a_long_head(hasty: Predictor) -> None:
    """A head past the bound gets 431 in the envelope, however much of it is sent."""
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    answered = talk(hasty, head + b"a: " + b"b" * 70_000)
    assert answered.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answered.partition(b"\r\n\r\n")[2])["error"]["type"] == (
        "invalid_request_error"
    )
    before = memory(hasty)
    talk(hasty, head, *[b"a:b\r\n" * 20_000] * 1000)
    assert memory(hasty) - before < 32 * 2**20


def test_slow_clients(hasty: Predictor) -> None:
    """A body that does not come gets 408; half a head, and no head, are given up."""
    answered = talk(hasty, POST + b"{")
    assert answered.startswith(b"HTTP/1.1 408 ")
    assert talk(hasty, POST[:40]) == b""
    assert talk(hasty) == b""
