"""What a JSON body may have at most, for routes that leave its parsing to KServe's SDK."""

from __future__ import annotations

from collections.abc import Awaitable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_protocol.request_limits import RequestLimits

# As deep as the objects that become requests: an instance's parameters in a structured CloudEvent.
_DEPTH_OF_NAMES = 5
_JSON_LENGTH = b"inference-header-content-length"  # V2: what follows are tensors' bytes


class JSONBounds:
    """Checks a body when its route reads it, before anything parses it; pure ASGI.

    `has_own` are paths whose routes check theirs. The request gate before it gives a body in one
    piece. Raises InvalidRequest into the route that reads.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits, has_own: Collection[str]) -> None:
        self._app = app
        self._limits = limits
        self._has_own = has_own

    # It returns what the application returns instead of waiting for it: a coroutine less on the way
    # of each request, and of each part of its answer.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or scope["path"] in self._has_own:
            return self._app(scope, receive, send)

        async def checked() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                self._limits.decode(_json_part(scope, message.get("body", b"")), _DEPTH_OF_NAMES)
            return message

        return self._app(scope, checked, send)


def _json_part(scope: Scope, body: bytes) -> bytes:
    for name, value in scope["headers"]:
        if name == _JSON_LENGTH and value.isdigit():
            return body[: int(value[:19])]
    return body
