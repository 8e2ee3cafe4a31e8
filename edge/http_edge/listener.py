"""The listening socket of an HTTP server."""

from __future__ import annotations

import socket

BACKLOG = 2048

_KEEP_ALIVE_OPTIONS = (
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
)


# So much of an answer the kernel holds before it is on its way. By default it is megabytes, in
# which a client's slowness would not show, neither here nor at an upstream.
_MAX_UNSENT_BYTES = 128 * 1024
# A stream to a client that has vanished would go on for a quarter of an hour otherwise.
_LEAST_UNACKNOWLEDGED_SECONDS = 60.0


def listen(host: str, port: int, write_seconds: float = 0.0) -> socket.socket:
    """Return a listening socket, which does not block; raises OSError.

    Accepted sockets inherit its options: a client that has vanished without a word is noticed, when
    it was idle and when it is sent something. Who reads nothing for `write_seconds` counts as
    vanished, after a minute at the earliest.
    """
    unacknowledged = max(write_seconds, _LEAST_UNACKNOWLEDGED_SECONDS)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE_OPTIONS:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
        milliseconds = round(unacknowledged * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
