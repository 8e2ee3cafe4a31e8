"""Server-sent events, written and read, as OpenAI's streams use them.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re

DONE = b"data: [DONE]\n\n"
DONE_PAYLOAD = b"[DONE]"
MEDIA_TYPE = "text/event-stream"
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r){2,}")
_LONGEST_LINE_END = 2


def event(data: bytes) -> bytes:
    """Frame one line of JSON as an event."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """Frame a comment: clients ignore it, connections stay alive by it."""
    return b": " + text.encode() + b"\n\n"


class EventSplitter:
    """Cuts a byte stream into whole events; owner: one stream.

    Invariant: what is held back is the start of one unfinished event, at most `max_event_bytes`
    long (`ValueError` past that).
    """

    def __init__(self, max_event_bytes: int = 8 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = b""
        self._ended_with_cr = False

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes, return those that end whole events (maybe none)."""
        if self._ended_with_cr:
            chunk = chunk.removeprefix(b"\n")  # the rest of the CRLF that ended the last event
        data = self._pending + chunk
        end = _last_blank_line(data, len(self._pending) - _LONGEST_LINE_END)
        self._pending = data[end:]
        self._ended_with_cr = not self._pending and data.endswith(b"\r")
        if len(self._pending) > self._max_event_bytes:
            raise ValueError("an event is longer than the limit")
        return data[:end]

    @property
    def pending(self) -> bytes:
        """The start of an event whose end has not come."""
        return self._pending


def data_of(raw_event: bytes) -> bytes | None:
    """Return an event's data (several `data:` lines joined by newlines), or None if it has none."""
    lines = []
    for line in raw_event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None


def split_events(data: bytes) -> list[bytes]:
    """Cut bytes that end with a blank line into single events, their lines ended by newlines."""
    normal = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return [lines for part in normal.split(b"\n\n") if (lines := part.strip(b"\n"))]


def _last_blank_line(data: bytes, start: int) -> int:
    """Return where the last blank line ends, 0 if none does after `start`."""
    if data.endswith(b"\n\n"):
        return len(data)
    end = 0
    for match in _BLANK_LINE.finditer(data, max(0, start)):
        end = match.end()
    return end
