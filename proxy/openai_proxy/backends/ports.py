"""The port that a backend listens on: free or taken, by whom, and what has come from there."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from openai_proxy.backends.kind import EXIT_BAD_CONFIGURATION, EXIT_PORT_TAKEN, BackendError

_LISTENING = "0A"
# Where `struct tcp_info` of linux/tcp.h has tcpi_bytes_received.
_BYTES_RECEIVED = struct.Struct("=128xQ")

_PASSING_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

# Bytes that have come over each connection, by its inode
Received = Mapping[int, int]


def find_port(host: str, port: int) -> int:
    """Return the port if it can be listened on, or for 0 one that is free just now.

    Another program may still take it. Raises BackendError, which names the setting, and OSError for
    what may pass.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if port:  # what is only closing is in nobody's way
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        if error.errno in _PASSING_ERRORS:
            raise
        reason = (error.strerror or str(error)).lower()
        if error.errno == errno.EADDRINUSE:
            raise BackendError(
                f"the backend cannot listen on {host} port {port}: {reason}; end what listens "
                "there, or choose another with --backend-port (OPENAI_PROXY_BACKEND_PORT), where 0 "
                "takes a free one",
                EXIT_PORT_TAKEN,
            ) from None
        raise BackendError(
            f"the backend cannot listen on {host} port {port}: {reason}; choose others with "
            "--backend-host and --backend-port",
            EXIT_BAD_CONFIGURATION,
        ) from None


def connectable(host: str) -> str:
    """Return the address that a server which listens on `host` is reached at from here."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # nothing is bound


def listens(root: int, port: int) -> bool | None:
    """Tell whether a process or one below it listens on a port; None where that cannot be seen."""
    inodes = _listening(port)
    if not inodes:
        return None
    is_all_seen = True
    for pid in _descendants(root):
        try:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                if str(entry.readlink()) in inodes:
                    return True
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended, or closed the file, just now
        except OSError:
            is_all_seen = False
    return False if is_all_seen else None


def received(port: int) -> Received:
    """Return how much has come over each connection of this process to a port.

    The kernel counts it: requests need not. Where it does not tell, nothing has come.
    """
    found: dict[int, int] = {}
    try:
        entries = list(Path("/proc/self/fd").iterdir())
    except OSError:
        return found
    for entry in entries:
        try:
            number = int(entry.name)
            status = os.fstat(number)
            if not stat.S_ISSOCK(status.st_mode):
                continue
            # To look for its family takes longer than the rest; addresses of IPv4 have room, too.
            with socket.socket(socket.AF_INET6, fileno=os.dup(number)) as connection:
                peer = connection.getpeername()
                if len(peer) > 1 and peer[1] == port:
                    found[status.st_ino] = _bytes_received(connection)
        except OSError:
            continue  # closed by now, or not connected
    return found


def _bytes_received(connection: socket.socket) -> int:
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    if len(told) < _BYTES_RECEIVED.size:
        return 0
    count: int = _BYTES_RECEIVED.unpack(told)[0]
    return count


def has_grown(before: Received, now: Received) -> bool:
    """Tell whether anything has come between two looks."""
    return any(count > before.get(connection, 0) for connection, count in now.items())


def _listening(port: int) -> set[str]:
    """Return the sockets that listen on a port, named as /proc/PID/fd names them."""
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _descendants(root: int) -> Iterator[int]:
    """Yield a process and all below it."""
    waiting = deque([root])
    while waiting:
        pid = waiting.popleft()
        yield pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting.extend(int(child) for child in children.read_text("ascii").split())
            except OSError:
                continue
