"""The listening socket: what accepted connections inherit from it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from http_edge.listener import listen
from kserve_llamacpp import listener as predictors
from openai_proxy import server as proxys


@pytest.mark.parametrize(
    "make",
    [
        lambda: listen("127.0.0.1", 0, 90),
        lambda: proxys.listen("127.0.0.1", 0, 90),
        lambda: predictors.bind("127.0.0.1", 0, write_seconds=90),
    ],
    ids=["edge", "proxy", "predictor"],
)
def test_clients_that_vanish_are_noticed(make: Callable[[], socket.socket]) -> None:
    """Idle connections are probed, and what is never acknowledged ends a connection in time."""
    with make() as listening, socket.create_connection(listening.getsockname()[:2], 5):
        listening.settimeout(5)
        with listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            tcp = {
                name: accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            }
    assert tcp["TCP_KEEPIDLE"] + tcp["TCP_KEEPINTVL"] * tcp["TCP_KEEPCNT"] <= 60
    assert tcp["TCP_USER_TIMEOUT"] == 90_000
