"""A proxy that does nothing but pass: ASGI in front, aiohttp behind, and no code in between.

    python pass_through.py PORT UPSTREAM_URL

What a Python proxy could reach at best with these two; it has neither limits nor errors.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_OF_A_CONNECTION = frozenset({b"host", b"connection", b"keep-alive", b"transfer-encoding"})


class PassThrough:
    """Sends each request on and its answer back, a stream's bytes as they come."""

    def __init__(self, upstream_url: str) -> None:
        self._upstream_url = upstream_url
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        message = await receive()
        body: bytes = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        async with self._session.request(
            scope["method"],
            self._upstream_url + scope["path"],
            data=body,
            headers=[
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in scope["headers"]
                if name not in _OF_A_CONNECTION
            ],
        ) as answer:
            await _answer(answer, send)


async def _answer(answer: aiohttp.ClientResponse, send: Send) -> None:
    headers = [
        (name.lower(), value)
        for name, value in answer.raw_headers
        if name.lower() not in _OF_A_CONNECTION
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if answer.content_length is None:
        async for chunk in answer.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.body", "body": await answer.read()})


def main(port: str, upstream_url: str) -> None:
    """Serve until a signal comes."""
    uvicorn.run(
        PassThrough(upstream_url),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
