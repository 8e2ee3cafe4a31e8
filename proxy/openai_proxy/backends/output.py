"""What a backend writes, passed on line by line: its JSON lines keep their level and fields."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

MAX_LINE_BYTES = 16 * 1024
Write = Callable[[str, str, dict[str, Any]], None]


class Output:
    """Cuts a backend's output into lines and hands each to `write(level, text, fields)`.

    `last_message` is what the last line said: its field `error`, or else its text.

    Invariant: holds at most one unfinished line, `MAX_LINE_BYTES` long; longer ones are cut off.
    """

    def __init__(self, write: Write) -> None:
        self.last_message = "nothing"
        self._write = write
        self._pending = b""
        self._is_cut = False

    def feed(self, chunk: bytes) -> None:
        """Take bytes as they come."""
        *lines, rest = (self._pending + chunk).split(b"\n")
        for line in lines:
            if not self._is_cut:
                self._line(line)
            self._is_cut = False
        if len(rest) > MAX_LINE_BYTES:
            if not self._is_cut:
                self._line(rest)
            self._is_cut = True
            rest = b""
        self._pending = b"" if self._is_cut else rest

    def end(self) -> None:
        """Take note that no more comes."""
        if self._pending and not self._is_cut:
            self._line(self._pending)
        self._pending = b""
        self._is_cut = False

    def _line(self, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode("utf-8", "replace").strip()
        if not text:
            return
        level, message, fields = parse_line(text)
        error = fields.get("error")
        self.last_message = _printable(error) if isinstance(error, str) and error else message
        self._write(level, message, fields)


def parse_line(text: str) -> tuple[str, str, dict[str, Any]]:
    """Return level, message and the other fields of a log line; plain text is of level info."""
    value: Any = None
    if text.startswith("{"):
        with contextlib.suppress(ValueError):
            value = json.loads(text)
    if not isinstance(value, dict):
        return "info", _printable(text), {}
    fields = {str(name): item for name, item in value.items()}
    level = str(fields.pop("level", "info")).lower()
    message = _printable(str(fields.pop("event", None) or fields.pop("message", "")))
    return level if level in _LEVELS else "info", message, fields


_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})


def _printable(text: str) -> str:
    """Return the text without control characters: a terminal must not obey a log line."""
    return "".join(char if char.isprintable() else " " for char in text)
