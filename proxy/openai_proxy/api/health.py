"""`/health`, `/health/live`, `/health/ready`, `/metrics` and `/`: plain ASGI, from the start."""

from __future__ import annotations

import json

from openai_proxy.metrics import CONTENT_TYPE, Metrics
from openai_proxy.middleware import Receive, Scope, Send, send_json
from openai_proxy.state import ServerState

PATHS = frozenset({"/", "/health", "/health/live", "/health/ready", "/metrics"})


class Health:
    """Answers by the server's state; `/health` in detail, 503 unless all is well."""

    def __init__(self, state: ServerState, metrics: Metrics) -> None:
        self._state = state
        self._metrics = metrics

    async def ok(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200: there is a server here."""
        await send_json(send, 200, b'{"message":"Ok"}')

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 as long as the event loop runs."""
        await send_json(send, 200, b'{"status":"ok"}')

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 where requests should be sent, else 503."""
        await self._tell(send, self._state.readiness())

    async def detail(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the state of the server and of its upstream, in the form that was chosen."""
        await self._tell(send, self._state.report())

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with all metrics."""
        body = self._metrics.render(self._state.is_ready)
        head = [
            (b"content-type", CONTENT_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _tell(self, send: Send, report: dict[str, object]) -> None:
        await send_json(send, 200 if self._state.is_ready else 503, json.dumps(report).encode())
