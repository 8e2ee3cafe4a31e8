"""Lines on their way to a slow place: a bounded queue, and the thread that empties it.

The event loop never waits for a disk, a pipe or a terminal: what there is no room for is counted,
and the count is told as soon as there is room again.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

MAX_QUEUED = 4 * 1024 * 1024  # characters
# Lines are collected for so long: a write for each would wake the thread for each, and the threads
# would wait for each other. The first after a silence is written at once.
PAUSE_SECONDS = 0.05


class Output(Protocol):
    """Where lines go; used by the sink's thread only."""

    def write(self, lines: Sequence[str]) -> None:
        """Write lines that have their line ends; may block. Raises OSError."""

    def close(self) -> None:
        """Let go of what was opened."""


class Sink:
    """Takes lines from any thread without blocking, and writes them in their order.

    Owner of its output and of one daemon thread. `lost_line(n)` renders the line that tells of
    lines which were lost; `on_failure` hears of the first of several failures in a row.

    Invariant: no more than `max_queued` characters wait, and as many are being written.
    """

    def __init__(
        self,
        output: Output,
        lost_line: Callable[[int], str],
        on_failure: Callable[[Exception], None] = lambda _: None,
        max_queued: int = MAX_QUEUED,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._output = output
        self._lost_line = lost_line
        self._on_failure = on_failure
        self._max_queued = max_queued
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()  # of the next five
        self._lines: list[str] = []
        self._num_queued = 0
        self._num_lost = 0
        self._num_lost_ever = 0
        self._is_awake = False
        self._wake = threading.Event()
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._is_hurried = threading.Event()
        self._is_closing = False
        self._has_ended = False
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="log-sink", daemon=True)
        self._thread.start()

    @property
    def num_lost(self) -> int:
        """How many lines were lost since the start."""
        return self._num_lost_ever

    def put(self, line: str) -> None:
        """Take a line; where there is no room for it, it is lost and counted."""
        with self._lock:
            if self._has_ended or self._num_queued + len(line) > self._max_queued:
                self._num_lost += 1
                self._num_lost_ever += 1
                return
            self._lines.append(line)
            self._num_queued += len(line)
            if self._is_awake:
                return
            self._is_awake = True
            self._is_idle.clear()
        self._wake.set()

    def flush(self, seconds: float) -> bool:
        """Wait until all is written, at most so long; tells whether it is."""
        self._is_hurried.set()
        return self._is_idle.wait(seconds)

    def close(self, seconds: float) -> bool:
        """Write what is there and end the thread; tells whether that took no longer."""
        self._is_closing = True
        self._is_hurried.set()
        self._wake.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            is_last = self._is_closing  # looked at first: what was put before that is taken
            self._empty()
            if is_last:
                with self._lock:
                    self._has_ended = True
                self._empty()  # what came in between
                self._output.close()
                return
            if not self._is_closing:
                self._is_hurried.wait(self._pause_seconds)

    def _empty(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            num_lost, self._num_lost = self._num_lost, 0
            self._num_queued = 0
            self._is_awake = False
        if lines or num_lost:
            self._write(lines, num_lost)
        with self._lock:
            if not self._is_awake:
                self._is_idle.set()
                self._is_hurried.clear()

    def _write(self, lines: list[str], num_lost: int) -> None:
        told = [self._lost_line(num_lost)] if num_lost else []
        try:
            self._output.write([*lines, *told])
        except (OSError, ValueError) as error:  # ValueError: it was closed
            with self._lock:
                self._num_lost += num_lost + len(lines)
                self._num_lost_ever += len(lines)
            if not self._is_failing:
                self._is_failing = True
                self._on_failure(error)
        else:
            self._is_failing = False


class Console:
    """Writes to a stream: to its file descriptor where it has one, past all locks and buffers.

    A thread that hangs in a buffered write holds its lock, and Python then cannot end.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        try:
            self._fd: int | None = stream.fileno()
        except (OSError, AttributeError):  # a stream in memory has none
            self._fd = None

    def write(self, lines: Sequence[str]) -> None:
        """Write lines; raises OSError."""
        text = "".join(lines)
        if self._fd is None:
            self._stream.write(text)
        else:
            write_all(self._fd, encoded(text))

    def close(self) -> None:
        """Leave the stream open: it is another's."""


def encoded(text: str) -> bytes:
    """Return text as UTF-8; half a surrogate pair is no reason to lose a line."""
    return text.encode("utf-8", "backslashreplace")


def write_all(fd: int, data: bytes) -> None:
    """Write all, also where others have made the descriptor non-blocking; raises OSError."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
