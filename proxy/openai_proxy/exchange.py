"""What is known of one request while it runs and when it is over; no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from openai_protocol.errors import ApiError

_KEY = "openai_proxy.exchange"
# The `log_fields` of the exchange that a context serves.
LOG_FIELDS: ContextVar[Mapping[str, str]] = ContextVar("openai_proxy_log_fields")
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left before it had an answer
CANCELLED = "cancelled"


class ClientGoneError(Exception):
    """The client closed its connection; nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class Target:
    """An upstream as observers see it: its name, the address of its URL, how it speaks."""

    name: str
    host: str
    port: int | None = None
    dialect: str = "openai"


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as observers see it; owner: the request's task.

    Times are those of the observing middleware's clock, in seconds. `route` is the path as the
    server knows it, `model` as the client wrote it; neither is bounded until it is checked.
    `server` is the address it came to, `trace_headers` are the client's, `span` is the tracer's;
    `log_fields` are on each log line that is written for it. `is_written`: the client has read all
    of the answer, but for what the server writes ahead.
    """

    request_id: str
    method: str
    path: str
    started_at: float
    route: str | None = None
    model: str | None = None
    status: int | None = None
    is_stream: bool = False
    first_byte_at: float | None = None
    finished_at: float | None = None
    error_code: str | None = None
    is_client_gone: bool = False
    is_written: bool = False
    upstream: str | None = None
    num_attempts: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    server: tuple[str, int | None] | None = None
    trace_headers: Sequence[tuple[str, str]] = ()
    observers: Sequence[AttemptObserver] = field(default=(), repr=False)
    span: Any = field(default=None, repr=False)
    log_fields: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def duration_seconds(self) -> float:
        """How long the request took, or 0 while it runs."""
        return (self.finished_at or self.started_at) - self.started_at

    @property
    def ttft_seconds(self) -> float | None:
        """The time to a stream's first byte; None for what is no stream, or became none."""
        if not self.is_stream or self.first_byte_at is None or self.status != 200:
            return None
        return self.first_byte_at - self.started_at

    @property
    def is_good(self) -> bool:
        """Whether the client got what it asked for."""
        has_failed = self.error_code is not None or self.is_client_gone
        return not has_failed and self.status is not None and self.status < 400

    def attempt(self, target: Target, peer: str) -> Attempt:
        """Return a context for one attempt at an upstream; `peer` is the address that is tried."""
        self.upstream = target.name
        self.num_attempts += 1
        return Attempt(self, target, peer, list(self.trace_headers))

    def note_usage(self, body: bytes) -> None:
        """Take the tokens from what goes to the client, where it tells them; the last count."""
        found = usage_in(body)
        if found is not None:
            self.prompt_tokens, self.completion_tokens = found


@dataclass(slots=True)
class Attempt:
    """One request to an upstream, as observers see it; a context: its end is that of the answer.

    `headers` go to the upstream beside the request's own: the trace's. `error_code` is that of the
    error it ended with, `cancelled` where the request was ended from outside.
    """

    exchange: Exchange
    target: Target
    peer: str
    headers: list[tuple[str, str]]
    status: int | None = None
    error_code: str | None = None
    span: Any = field(default=None, repr=False)

    def __enter__(self) -> Attempt:
        for observer in self.exchange.observers:
            observer.attempt_started(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, ApiError):
            self.error_code = str(error.code)
        elif error is not None:
            self.error_code = CANCELLED if not isinstance(error, Exception) else kind_of(error)
        for observer in self.exchange.observers:
            observer.attempt_finished(self)


class Observer(Protocol):
    """Hears of every request; must not raise and must not block."""

    def request_started(self, exchange: Exchange) -> None:
        """Called before the request is read."""

    def request_finished(self, exchange: Exchange) -> None:
        """Called when its last byte was handed over, or it ended otherwise."""


@runtime_checkable
class AttemptObserver(Protocol):
    """Hears of every attempt at an upstream; must not raise and must not block."""

    def attempt_started(self, attempt: Attempt) -> None:
        """Called before an upstream is asked; may change the headers that are added."""

    def attempt_finished(self, attempt: Attempt) -> None:
        """Called when its answer was passed on, or it ended otherwise."""


def attach(scope: MutableMapping[str, Any], exchange: Exchange) -> None:
    """Put the exchange into an ASGI scope."""
    scope[_KEY] = exchange


def exchange_of(scope: Mapping[str, Any]) -> Exchange:
    """Return the exchange of an ASGI scope that went through the observing middleware."""
    exchange: Exchange = scope[_KEY]
    return exchange


def loggable(text: str, limit: int = 128) -> str:
    """Return client-supplied text fit for a log line: printable ASCII, bounded."""
    return ascii(text[:limit])[1:-1]


def loggable_code(code: str) -> str:
    """Return an error's code, which may be an upstream's: what is no code is not shown."""
    return code if _CODE.fullmatch(code) else "other"


def kind_of(error: BaseException) -> str:
    """Return an unexpected error's name, never its text."""
    return type(error).__qualname__


def usage_in(body: bytes) -> tuple[int | None, int | None] | None:
    """Return prompt and completion tokens as an answer, or events of a stream, tell them.

    Looks for the last `"usage"` with tokens, and at both ends only of what is long: it is the
    last field of most answers and the first of some. Within a JSON string the name's quotes would
    be escaped: no text can be taken for it.
    """
    if len(body) <= 2 * _USAGE_EDGE:
        return _last_usage(body)
    return _last_usage(body[-_USAGE_EDGE:]) or _last_usage(body[:_USAGE_EDGE])


def _last_usage(body: bytes) -> tuple[int | None, int | None] | None:
    at = body.rfind(b'"usage"')
    while at >= 0:
        if _USAGE.match(body, at):
            end = at + _USAGE_BYTES
            prompt = _PROMPT_TOKENS.search(body, at, end)
            completion = _COMPLETION_TOKENS.search(body, at, end)
            if prompt or completion:
                return prompt and int(prompt[1]), completion and int(completion[1])
        at = body.rfind(b'"usage"', 0, at)
    return None


_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_USAGE_EDGE = 16 * 1024
_USAGE_BYTES = 1024
_USAGE = re.compile(rb'"usage": ?\{')
_PROMPT_TOKENS = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})(?=[\s,}])')
_COMPLETION_TOKENS = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})(?=[\s,}])')
