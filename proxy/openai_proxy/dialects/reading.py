"""Reads an upstream's stream piece by piece in bounded memory; dialects say what it means."""

from __future__ import annotations

import re
from typing import Protocol

from openai_protocol.errors import ApiError
from openai_protocol.sse import EventSplitter, data_of, split_events
from openai_proxy.dialects.base import Json
from openai_proxy.dialects.fields import json_value
from openai_proxy.dialects.openai import broken_stream

MAX_LINE_BYTES = 8 * 1024 * 1024
_FIELD = re.compile(rb"(:|(data|event|id|retry)(:|$))")


class Cutter(Protocol):
    """Cuts a byte stream into pieces, however the network cut it; owner: one stream."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes, return the pieces that they end; raises ValueError for no such stream."""

    def rest(self) -> list[bytes]:
        """Return the last piece, whose end never came, where there is one."""


class Lines:
    """Cuts NDJSON into its lines, blank ones left out; at most `max_bytes` are held back."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes, return the lines that they end; raises ValueError past the limit."""
        begun, newline, rest = chunk.rpartition(b"\n")
        lines: list[bytes] = []
        if newline:
            lines = (bytes(self._pending) + begun).split(b"\n")
            self._pending.clear()
        self._pending += rest
        if len(self._pending) > self._max_bytes:
            raise ValueError("a line is longer than the limit")
        return [line for line in lines if line.strip()]

    def rest(self) -> list[bytes]:
        """Return the last line, which no newline ends."""
        return [bytes(self._pending)] if self._pending.strip() else []


class Events:
    """Cuts server-sent events into their data; comments and events without data are left out."""

    def __init__(self) -> None:
        self._splitter = EventSplitter()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes, return the data of the events that they end; raises ValueError for others."""
        return _data(self._splitter.feed(chunk))

    def rest(self) -> list[bytes]:
        """Return the data of the last event, which no blank line ends."""
        return _data(self._splitter.pending)


def _data(block: bytes) -> list[bytes]:
    found = []
    for raw in split_events(block):
        data = data_of(raw)
        if data is not None:
            found.append(data)
        elif not all(_FIELD.match(line) for line in raw.split(b"\n")):
            raise ValueError("this is no event")
    return found


class TranslatedStream:
    """A stream whose pieces `_take` translates; owner: one answer.

    What goes wrong is raised by `finish`, after all that came well was passed on: it becomes an
    HTTP error where nothing was, else the stream's last event.
    """

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter
        self._error: ApiError | None = None
        self._is_complete = False

    @property
    def is_complete(self) -> bool:
        """Whether the stream is over, well or not."""
        return self._is_complete

    def feed(self, chunk: bytes) -> bytes:
        """Return the events that this chunk completes."""
        try:
            pieces = self._cutter.feed(chunk)
        except ValueError:
            self._fail(broken_stream())
            return b""
        return self._take_all(pieces)

    def finish(self) -> bytes:
        """Return the last events; raises ApiError unless the stream has ended well."""
        events = b""
        if not self._is_complete:
            try:
                events = self._take_all(self._cutter.rest())
            except ValueError:
                self._fail(broken_stream())
        if not self._is_complete:
            events += self._cut_off()
        if self._error is not None:
            raise self._error
        return events

    def _take(self, piece: bytes) -> bytes:
        """Translate a piece, set `_is_complete` at the end; raises ApiError for a bad end."""
        raise NotImplementedError

    def _cut_off(self) -> bytes:
        """Return the last events of a stream that ended without its end mark; raises ApiError."""
        raise broken_stream()

    def _take_all(self, pieces: list[bytes]) -> bytes:
        events = []
        for piece in pieces:
            try:
                events.append(self._take(piece))
            except ApiError as error:
                self._fail(error)
            if self._is_complete:
                break
        return b"".join(events)

    def _fail(self, error: ApiError) -> None:
        self._error = error
        self._is_complete = True


def json_piece(data: bytes) -> Json:
    """Decode a piece of a stream; raises BadGateway (`upstream_stream_broken`) for no object."""
    value = json_value(data)
    if not isinstance(value, dict):
        raise broken_stream()
    return value
