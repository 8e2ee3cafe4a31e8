"""The port that a backend listens on: chosen, free or taken, and by whom."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from openai_proxy.backends.kind import EXIT_BAD_CONFIGURATION, EXIT_PORT_TAKEN, BackendError

_LISTENING = "0A"


def find_port(host: str, port: int) -> int:
    """Return the port if it can be listened on, or for 0 one that is free just now.

    Another program may still take it. Raises BackendError, which names the setting.
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
