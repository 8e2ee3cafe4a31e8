"""How many requests may run at a time, checked before any upstream is touched."""

from __future__ import annotations

from openai_protocol.errors import ErrorCode, RateLimited
from openai_proxy.middleware import App, Receive, Scope, Send

RETRY_AFTER_SECONDS = 2.0


class Concurrency:
    """How many requests run that count; owner: the server, used in its event loop only.

    It outlives a configuration: those that began under another one still run.
    """

    __slots__ = ("num_running",)

    def __init__(self) -> None:
        self.num_running = 0


class LimitConcurrency:
    """Refuses requests with 429 while as many run as may.

    Those that make a model work are counted, by their method: GET costs little, and probes must
    see the server as it is when it is busy.
    """

    def __init__(self, app: App, max_requests: int, concurrency: Concurrency) -> None:
        self._app = app
        self._max_requests = max_requests
        self._concurrency = concurrency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._concurrency.num_running >= self._max_requests:
            raise RateLimited(
                "The server is busy with as many requests as it may serve at a time; please try "
                "again in a moment.",
                code=ErrorCode.QUEUE_FULL,
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._concurrency.num_running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._concurrency.num_running -= 1
