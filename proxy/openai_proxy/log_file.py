"""A log file of bounded size, which others may move away: it is opened anew then."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from http_edge.log_sink import encoded, write_all

MODE = 0o640


class RotatingFile:
    """Appends lines to `path`, which becomes `path.1` when it is full or its time is over.

    Owner of the open file; used by one thread. Rotation is by size (`max_bytes`), and by time: at
    each multiple of `rotate_seconds` of the clock, in Unix time; 0 turns either off. `num_backups`
    older files are kept. Where the file cannot be renamed it is emptied instead, and `on_failure`
    hears of it: logs never fill a disk. A device or pipe is only written to.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = 0,
        num_backups: int = 0,
        rotate_seconds: float = 0,
        on_failure: Callable[[Exception], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file; raises OSError."""
        self._path = path
        self._max_bytes = max_bytes
        self._num_backups = num_backups
        self._rotate_seconds = rotate_seconds
        self._on_failure = on_failure
        self._clock = clock
        self._fd: int | None = None
        self._is_regular = True
        self._is_torn = False
        self._size = 0
        self._period = 0
        self._open()

    def write(self, lines: Sequence[str]) -> None:
        """Append lines that have their line ends; raises OSError."""
        self._follow()
        now = self._period_at(self._clock())
        if self._size and self._period != now:
            self._rotate()
        self._period = now
        piece = bytearray()
        for line in lines:
            data = encoded(line)
            size = self._size + len(piece)
            if self._is_regular and size and 0 < self._max_bytes < size + len(data):
                self._append(piece)
                self._rotate()
                piece = bytearray()
            piece += data
        self._append(piece)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        # O_NONBLOCK: a pipe without a reader is an error instead of a wait without end
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(self._path, flags, MODE)
        self.close()
        self._fd = fd
        os.set_blocking(fd, True)
        status = os.fstat(fd)
        self._is_regular = stat.S_ISREG(status.st_mode)
        self._size = status.st_size if self._is_regular else 0
        self._period = self._period_at(status.st_mtime if self._size else self._clock())

    def _follow(self) -> None:
        """Open the file anew where its name leads elsewhere now; see how long it has become."""
        assert self._fd is not None
        if not self._is_regular:
            return
        mine = os.fstat(self._fd)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            self._open()
            return
        if (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino):
            self._size = mine.st_size
        else:
            self._open()

    def _append(self, data: bytes | bytearray) -> None:
        assert self._fd is not None
        if not data:
            return
        if self._is_torn:
            data = b"\n" + data
        try:
            write_all(self._fd, bytes(data))
        except OSError:
            # A part may have got there: what comes next begins on a line of its own.
            self._is_torn = self._is_regular and os.fstat(self._fd).st_size != self._size
            raise
        self._is_torn = False
        if self._is_regular:
            self._size += len(data)

    def _rotate(self) -> None:
        try:
            self._shift()
        except OSError as error:
            self._empty()
            self._on_failure(error)
        else:
            self._open()

    def _empty(self) -> None:
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        self._size = 0

    def _shift(self) -> None:
        if not self._num_backups:
            self._path.unlink()
            return
        for number in range(self._num_backups - 1, 0, -1):
            older = self._backup(number)
            if older.exists():
                older.replace(self._backup(number + 1))
        self._path.replace(self._backup(1))

    def _backup(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _period_at(self, seconds: float) -> int:
        return int(seconds // self._rotate_seconds) if self._rotate_seconds else 0
