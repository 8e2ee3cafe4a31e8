"""The HTTP server: uvicorn on a socket of ours, without its signal handling."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from http_edge import listener
from http_edge.connection import protocol
from http_edge.connections import Connections
from openai_proxy.tls import ServerTLS, server_context

EXIT_PORT_TAKEN = 3


class ListenError(Exception):
    """The address cannot be listened on; the text names the setting."""


class Server(uvicorn.Server):
    """uvicorn's server; when it stops is the lifecycle's decision."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would close its listeners at the first."""
        yield


def build(
    app: Any, grace_seconds: float, connections: Connections, tls: ServerTLS | None = None
) -> Server:
    """Return a server for the application; it waits `grace_seconds` for requests at its end.

    Raises ValueError for files of `tls` that cannot be used.
    """
    context = None if tls is None else server_context(tls)
    return Server(
        uvicorn.Config(
            app,
            http=protocol(connections),
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody asks for the client's address
            backlog=listener.BACKLOG,
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
            ssl_context_factory=None if context is None else lambda _, __: context,
        )
    )


def listen(host: str, port: int, write_seconds: float = 0.0) -> socket.socket:
    """Return a listening socket (`http_edge.listener`); raises ListenError."""
    try:
        return listener.listen(host, port, write_seconds)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ListenError(
            f"cannot listen on {host} port {port}: {reason}; "
            "choose others with --host and --port (OPENAI_PROXY_HOST, OPENAI_PROXY_PORT)"
        ) from None
