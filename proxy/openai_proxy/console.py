"""What the command says itself, beside its logs: to whoever reads it, and never at any cost."""

from __future__ import annotations

import contextlib
import threading
from typing import TextIO

from http_edge.log_sink import Console


def say(text: str, stream: TextIO) -> None:
    """Write text at once; what a full disk or a reader that has left does not take is lost.

    Not into the stream's buffer, which Python would write once more at its end, and end with
    another status where that fails.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
        Console(stream).write([text])


def say_beside(text: str, stream: TextIO) -> None:
    """As `say`, without waiting: a reader that sleeps stops nobody."""
    threading.Thread(target=say, args=(text, stream), name="console", daemon=True).start()
