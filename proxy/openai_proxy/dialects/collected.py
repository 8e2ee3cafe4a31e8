"""Streams for upstreams that have none: the whole answer, as events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openai_proxy.dialects.base import Call, Json
from openai_proxy.dialects.form import Choice, ChunkWriter, completion
from openai_proxy.dialects.openai import invalid_response

MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Whole:
    """What an upstream's whole answer says; `usage` is None where it tells none."""

    choices: Sequence[Choice]
    usage: Json | None = None

    def body(self, call: Call) -> bytes:
        """Return it as OpenAI's answer."""
        return completion(call, self.choices, self.usage)

    def events(self, call: Call) -> bytes:
        """Return it as OpenAI's stream: each choice in one piece."""
        writer = ChunkWriter(call)
        events = [
            writer.text(choice.text, at, choice.draws) + writer.finish(choice.finish_reason, at)
            for at, choice in enumerate(self.choices)
        ]
        return b"".join(events) + writer.end(self.usage)


class CollectedStream:
    """Collects an answer as its bytes come; all events come with its end.

    `read` raises BadGateway for an answer that it does not understand.
    """

    def __init__(self, call: Call, read: Callable[[bytes], Whole]) -> None:
        self._call = call
        self._read = read
        self._chunks: list[bytes] = []
        self._num_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether no more is wanted: the answer is longer than an answer may be."""
        return self._num_bytes > MAX_BYTES

    def feed(self, chunk: bytes) -> bytes:
        """Keep the bytes; there is nothing to forward yet."""
        self._chunks.append(chunk)
        self._num_bytes += len(chunk)
        return b""

    def finish(self) -> bytes:
        """Return the whole stream; raises BadGateway for a bad answer."""
        if self.is_complete:
            raise invalid_response()
        return self._read(b"".join(self._chunks)).events(self._call)
