"""`/openapi.json`, and Swagger UI at `/swagger-ui/` and `/docs` with its files in the package.

No page asks anything of another server, which its Content-Security-Policy forbids, too. All links
are relative, so that they hold behind a platform's prefix and under /v1.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from openai_proxy.error_forms import ErrorForm
from openai_proxy.middleware import App, Receive, Scope, Send, send_json

DOCUMENT = "/openapi.json"
PAGE = "/swagger-ui/"
ASSETS = {
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "swagger-initializer.js": b"text/javascript; charset=utf-8",
}
DIRECTORY = Path(__file__).parents[1] / "swagger_ui"
# Swagger UI writes styles into its elements, and has its icons in its style sheet.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_KEEP_SECONDS = 3600
_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{assets}swagger-ui.css">
</head>
<body>
<div id="swagger-ui" data-document="{document}"></div>
<script src="{assets}swagger-ui-bundle.js"></script>
<script src="{assets}swagger-initializer.js"></script>
</body>
</html>
"""
Table = dict[str, dict[str, App]]


class Swagger:
    """Serves the document and its pages; `known` returns the paths that are served."""

    def __init__(self, known: Callable[[], Awaitable[frozenset[str]]], form: ErrorForm) -> None:
        self._known = known
        self._form = form

    def table(self) -> Table:
        """Return the endpoints."""
        table: Table = {
            DOCUMENT: {"GET": self.document},
            PAGE: {"GET": page(assets="", document="../openapi.json")},
            PAGE.rstrip("/"): {"GET": redirect},
            "/docs": {"GET": page(assets="swagger-ui/", document="openapi.json")},
        }
        return table | {PAGE + name: {"GET": asset(name)} for name in ASSETS}

    async def document(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the API's description, in OpenAPI."""
        from openai_proxy.api import openapi  # not imported unless it is asked for

        is_under_v1 = scope["path"].startswith("/v1/")
        described = openapi.document(await self._known(), self._form, ".." if is_under_v1 else ".")
        await send_json(send, 200, json.dumps(described).encode())


def page(assets: str, document: str) -> App:
    """Return the endpoint of a page, with its links as they are seen from there."""
    html = _HTML.format(assets=assets, document=document).encode()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-security-policy", POLICY.encode()), (b"cache-control", b"no-cache")]
        await _send(send, b"text/html; charset=utf-8", html, headers)

    return serve


def asset(name: str) -> App:
    """Return the endpoint of one of Swagger UI's files; they are read when they are asked for."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        body = await asyncio.to_thread((DIRECTORY / name).read_bytes)
        headers = [(b"cache-control", b"public, max-age=%d" % _KEEP_SECONDS)]
        await _send(send, ASSETS[name], body, headers)

    return serve


async def redirect(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the browser to the page's own path, below which its files are."""
    headers = [(b"location", b"swagger-ui/"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _send(
    send: Send, media_type: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    head = [
        (b"content-type", media_type),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})
