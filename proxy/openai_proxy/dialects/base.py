"""What a dialect is: two pure functions and a stream parser; no I/O, no configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from openai_protocol.errors import ApiError

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What is sent to an upstream; `path` is below its base URL."""

    path: str
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The head of an upstream's answer; media type and encoding in lower case."""

    status: int
    media_type: str
    encoding: str = ""
    retry_after: str | None = None


class PassedError(ApiError):
    """An upstream's own error that already has OpenAI's form: its body passes as it is."""

    def __init__(self, status: int, code: str, raw: bytes) -> None:
        super().__init__("the upstream refused the request", status=status, code=code)
        self._raw = raw

    def body(self) -> bytes:
        """Return the upstream's body."""
        return self._raw


class StreamParser(Protocol):
    """Turns an upstream's stream into OpenAI's events; one for each stream."""

    @property
    def is_complete(self) -> bool:
        """Whether the stream is over, well or not; nothing that follows belongs to it."""

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes as they come, return whole events to forward (maybe none)."""

    def finish(self) -> None:
        """Tell that no more is fed; raises BadGateway (`upstream_stream_broken`) for a bad end."""


class Dialect(Protocol):
    """How one kind of upstream speaks."""

    def request(self, path: str, headers: Headers, body: bytes) -> UpstreamRequest:
        """Translate a checked OpenAI request; `path` as our client sees it (`/v1/...`)."""

    def answer(self, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole successful answer; raises BadGateway where it is none."""

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status."""

    def stream(self) -> StreamParser:
        """Return a parser for one stream."""
