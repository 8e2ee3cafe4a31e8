"""CORS: which pages of other origins may use this server from a browser. Plain ASGI.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_proxy.error_forms import ErrorForm
from openai_proxy.exchange import exchange_of
from openai_proxy.middleware import App, Message, Receive, Scope, Send, header, send_error

ANY = "*"
# Pages may read these of every answer, besides the few that they always may.
EXPOSED_HEADERS = ("x-request-id", "retry-after", "x-should-retry")
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_TOKENS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: *, *[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_MAX_REQUESTED_BYTES = 4096
# scheme://HOST, https://*.example.com, http://localhost:*, vscode-webview://*, null
_ORIGIN = re.compile(
    r"null|[a-z][a-z0-9+.-]*://"
    r"(?:\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])"
    r"(?::(?:\*|[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Cors:
    """Who may do what: origins as browsers send them, `*`, or with `*` for subdomains or the port.

    `max_age_seconds`: how long a browser may remember the answer to a preflight.
    """

    origins: tuple[str, ...]
    allow_credentials: bool = False
    exposed_headers: tuple[str, ...] = EXPOSED_HEADERS
    max_age_seconds: int = 600


def checked_origin(text: str) -> str:
    """Return an origin or a pattern of such in lower case; raises ValueError."""
    origin = text.strip().lower()
    if origin != ANY and not _ORIGIN.fullmatch(origin):
        raise ValueError(
            f"{text.strip()[:100]!r} is no origin: write https://app.example.com (no path, no "
            "slash at the end), https://*.example.com, http://localhost:*, or * for any"
        )
    return origin


def _pattern(origins: Sequence[str]) -> re.Pattern[bytes]:
    """Return what matches these origins; a `*` stands for whole labels, or for a port."""
    alternatives = (re.escape(origin).replace(r"\*", "[a-z0-9._-]+") for origin in origins)
    return re.compile("|".join(alternatives).encode())


class AllowOrigins:
    """Answers preflights itself, and tells browsers of every other answer which pages may read it.

    A request of an origin that is not allowed is served as any other: the browser keeps the answer
    from the page. (Who may use the server is decided by keys, not by what a browser says.)
    """

    def __init__(self, app: App, cors: Cors, form: ErrorForm) -> None:
        """`form` is that of a refused preflight: it comes before all that renders errors."""
        self._app = app
        self._form = form
        self._is_for_any = ANY in cors.origins
        self._pattern = _pattern([origin for origin in cors.origins if origin != ANY])
        self._credentials = (
            [(b"access-control-allow-credentials", b"true")] if cors.allow_credentials else []
        )
        self._exposed = (b"access-control-expose-headers", ", ".join(cors.exposed_headers).encode())
        self._max_age = (b"access-control-max-age", str(cors.max_age_seconds).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        origin = header(scope, b"origin")
        allowed = self._allowed(origin)
        if (
            origin is not None
            and scope["method"] == "OPTIONS"
            and header(scope, b"access-control-request-method") is not None
        ):
            await self._answer_preflight(scope, allowed, send)
            return
        headers = [*allowed, self._exposed] if allowed else []
        if not self._is_for_any:
            headers.append((b"vary", b"origin"))  # what a cache keeps is for this origin alone

        async def marked_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        await self._app(scope, receive, marked_send if headers else send)

    def _allowed(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        """Return the headers that allow an origin; none where it is not allowed, or is not said."""
        if origin is None:
            return []
        if self._is_for_any:
            return [(b"access-control-allow-origin", b"*")]
        if not self._pattern.fullmatch(origin):
            return []
        return [(b"access-control-allow-origin", origin), *self._credentials]

    async def _answer_preflight(
        self, scope: Scope, allowed: list[tuple[bytes, bytes]], send: Send
    ) -> None:
        if not allowed:
            error = InvalidRequest(
                "Pages of this origin may not use this server.",
                status=403,
                code=ErrorCode.ORIGIN_NOT_ALLOWED,
            )
            exchange_of(scope).error_code = str(error.code)
            await send_error(send, error, self._form)
            return
        headers = [
            *allowed,
            self._max_age,
            (b"access-control-allow-methods", _METHODS),
            (b"vary", b"origin, access-control-request-headers"),
        ]
        # A `*` would not stand for Authorization: so those that are asked for are named.
        requested = header(scope, b"access-control-request-headers")
        if requested is not None and _is_list_of_tokens(requested):
            headers.append((b"access-control-allow-headers", requested))
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _is_list_of_tokens(value: bytes) -> bool:
    return len(value) <= _MAX_REQUESTED_BYTES and bool(_TOKENS.fullmatch(value))
