"""The socket that a server listens on, bound before anything slow is done."""

from __future__ import annotations

import socket

from http_edge import listener
from kserve_llamacpp.errors import ConfigurationError, PortTakenError


def bind(
    host: str, port: int, flag: str = "--http_port", write_seconds: float = 0.0
) -> socket.socket:
    """Bind the port before anything slow is done; raises PortTakenError, ConfigurationError."""
    try:
        sock = listener.listen(
            host, port, write_seconds
        )  # or two could bind it, and the later fail much later
    except OSError as error:
        if error.errno == 98:  # EADDRINUSE
            raise PortTakenError(
                f"{flag}: another process listens on port {port}: stop it, or choose another "
                "port (0 for a free one)"
            ) from None
        raise ConfigurationError(
            f"--http_host, {flag}: cannot listen on {host}:{port}: {error.strerror}"
        ) from None
    sock.set_inheritable(False)
    return sock
