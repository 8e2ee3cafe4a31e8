"""Small files that are replaced while the proxy runs: certificates, keys, secrets.

Kubernetes replaces a mounted Secret by turning a symbolic link: path and time may stay, the file
behind them does not. So what is compared is the file's identity, not its time alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
CHECK_SECONDS = 1.0
Stamp = tuple[tuple[int, int, int, int] | None, ...]


def stamp(paths: Sequence[Path]) -> Stamp:
    """Return what changes with the files; None in it for one that cannot be looked at."""
    return tuple(_stamp_of(path) for path in paths)


def _stamp_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class Reloaded(Generic[Value]):
    """What is read from files, read again when they change; owner: the event loop.

    `load` raises ValueError or OSError for files that are of no use. The first time that goes to
    the caller; later the last good value stays, `on_failure` hears of it, and the next look tries
    again. Files are looked at when the value is asked for, at most once in `CHECK_SECONDS`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        load: Callable[[], Value],
        on_reload: Callable[[], None] = lambda: None,
        on_failure: Callable[[Exception], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._on_reload = on_reload
        self._on_failure = on_failure
        self._clock = clock
        self._stamp = stamp(self._paths)
        self._failed_stamp: Stamp | None = None
        self._checked_at = clock()
        self._value = load()

    def value(self, *, now: bool = False) -> Value:
        """Return what the files hold; `now`: look, however short ago the last look was."""
        if self._paths and (now or self._clock() - self._checked_at >= CHECK_SECONDS):
            self._checked_at = self._clock()
            found = stamp(self._paths)
            if found != self._stamp:
                self._read_again(found)
        return self._value

    def _read_again(self, found: Stamp) -> None:
        try:
            self._value = self._load()
        except (OSError, ValueError) as error:
            # Maybe only half of them are written: the next look tries again, but tells no more.
            if found != self._failed_stamp:
                self._failed_stamp = found
                self._on_failure(error)
            return
        self._stamp = found
        self._failed_stamp = None
        self._on_reload()


def read_secret(path: Path, what: str, max_bytes: int = 64 * 1024) -> str:
    """Return a file's text without white space at its ends; ValueError names `what`, no content."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise ValueError(f"{what}: cannot read {path}: {reason}") from None
    if len(data) > max_bytes:
        raise ValueError(f"{what}: {path} is longer than {max_bytes} bytes")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{what}: {path} is no text") from None
    if not text:
        raise ValueError(f"{what}: {path} is empty")
    return text
