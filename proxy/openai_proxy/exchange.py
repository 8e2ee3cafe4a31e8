"""What is known of one request while it runs and when it is over; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

_KEY = "openai_proxy.exchange"
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left before it had an answer


class ClientGoneError(Exception):
    """The client closed its connection; nobody waits for the answer."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as observers see it; owner: the request's task.

    Times are those of the observing middleware's clock, in seconds. `route` is the path as the
    server knows it, `model` as the client wrote it; neither is bounded until it is checked.
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


class Observer(Protocol):
    """Hears of every request; must not raise and must not block."""

    def request_started(self, exchange: Exchange) -> None:
        """Called before the request is read."""

    def request_finished(self, exchange: Exchange) -> None:
        """Called when its last byte was handed over, or it ended otherwise."""


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
