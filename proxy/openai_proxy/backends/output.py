"""What a backend writes, passed on line by line: JSON lines keep their level and fields."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

MAX_LINE_BYTES = 16 * 1024
# More lines than that are counted only: a log must not take the time that requests need.
LINES_PER_SECOND = 1000.0
LINES_AT_ONCE = 5000.0
MAX_SAID = 50
MAX_SAID_CHARS = 1000
HIDDEN = "***"
Write = Callable[[str, str, dict[str, Any]], None]


class Output:
    """Cuts a backend's output into lines and hands each to `write(level, text, fields)`.

    `said` are the last lines since `begin`: of each its field `error`, or else its text.
    `prefix` stands before lines that are no JSON; each text of `hidden` is replaced everywhere.

    Invariant: holds at most one unfinished line, `MAX_LINE_BYTES` long; longer ones are cut off.
    """

    def __init__(
        self,
        write: Write,
        prefix: str = "",
        hidden: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.said: deque[str] = deque(maxlen=MAX_SAID)
        self.is_flooded = False
        self._write = write
        self._prefix = prefix
        self._hidden = tuple(sorted(hidden, key=len, reverse=True))
        self._clock = clock
        self._pending = b""
        self._is_cut = False
        self._credit = LINES_AT_ONCE
        self._credit_at = clock()
        self._num_dropped = 0
        self._last_dropped = b""

    @property
    def last_message(self) -> str:
        """What the last line said."""
        return self.said[-1] if self.said else "nothing"

    def begin(self) -> None:
        """Take note that another process begins to write."""
        self.said.clear()

    def feed(self, chunk: bytes) -> None:
        """Take bytes as they come; `is_flooded` then tells whether it is more than is passed on."""
        data = self._pending + chunk if self._pending else chunk
        self._refill()
        begin = 0
        self.is_flooded = False
        while (end := data.find(b"\n", begin)) >= 0:
            if self._is_cut:
                self._is_cut = False
            elif self._credit >= 1 and not self._num_dropped:
                self._credit -= 1
                self._line(data[begin:end])
            else:
                begin = self._drop(data, begin)
                break
            begin = end + 1
        self._keep(data[begin:])

    def end(self) -> None:
        """Take note that no more comes."""
        if self._num_dropped:
            self._tell_dropped()
            self._line(self._last_dropped)
        if self._pending and not self._is_cut:
            self._line(self._pending)
        self._pending = b""
        self._is_cut = False

    def _refill(self) -> None:
        now = self._clock()
        self._credit = min(self._credit + (now - self._credit_at) * LINES_PER_SECOND, LINES_AT_ONCE)
        self._credit_at = now
        if self._num_dropped and self._credit >= LINES_PER_SECOND:
            self._tell_dropped()

    def _drop(self, data: bytes, begin: int) -> int:
        """Count the whole lines from `begin` on, keep the last; returns where the rest begins."""
        last = data.rindex(b"\n")
        self._num_dropped += data.count(b"\n", begin, last + 1)
        before = data.rfind(b"\n", begin, last) + 1 or begin
        self._last_dropped = data[before : min(last, before + MAX_LINE_BYTES)]
        self.is_flooded = True
        return last + 1

    def _tell_dropped(self) -> None:
        self._write("warning", "lines_dropped", {"lines": self._num_dropped})
        self._num_dropped = 0

    def _keep(self, rest: bytes) -> None:
        if len(rest) > MAX_LINE_BYTES or self._is_cut:
            if not self._is_cut:
                self._line(rest)
            self._is_cut = True
            self.is_flooded = True
            rest = b""
        self._pending = rest

    def _line(self, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode("utf-8", "replace").strip()
        for secret in self._hidden:
            text = text.replace(secret, HIDDEN)
        if not text:
            return
        level, message, fields = parse_line(text)
        error = None if fields is None else fields.get("error")
        said = printable(error) if isinstance(error, str) and error else message
        self.said.append(said[:MAX_SAID_CHARS])
        if fields is None:
            self._write(level, self._prefix + message, {})
        else:
            self._write(level, message, fields)


def parse_line(text: str) -> tuple[str, str, dict[str, Any] | None]:
    """Return level, message and the other fields of a JSON log line.

    Plain text has None for fields; its level is what it names near its beginning, else info.
    """
    value: Any = None
    if text.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
    if not isinstance(value, dict):
        plain = printable(text)
        return _level_of(plain), plain, None
    fields = {str(name): item for name, item in value.items()}
    level = str(fields.pop("level", "info")).lower()
    message = printable(str(fields.pop("event", None) or fields.pop("message", "")))
    return _LEVELS.get(level, "info"), message, fields


def _level_of(text: str) -> str:
    """Return the level that a line names in capitals; llama.cpp's lines name it by a letter."""
    found = _LETTER.match(text) or _WORD.match(text)
    return _LEVELS[found[1].lower()] if found else "info"


_LEVELS = {
    **{name: name for name in ("debug", "info", "warning", "error", "critical")},
    "trace": "debug",
    "warn": "warning",
    "fatal": "critical",
    "d": "debug",
    "i": "info",
    "w": "warning",
    "e": "error",
}
_LETTER = re.compile(r"[\d.]+ ([DIWE]) ")
_WORD = re.compile(r".{0,60}?\b(TRACE|DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\b")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def printable(text: str) -> str:
    """Return the text without control characters: a terminal must not obey a log line."""
    text = _ESCAPES.sub("", text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in text)
