"""What a request knows of its client's connection, and the name in a client's certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from openai_protocol.errors import ApiError

Message = MutableMapping[str, Any]
EXTENSION = "http_edge.connection"  # among ASGI's extensions
# The server writes so much ahead of what a client has read.
PART_BYTES = 64 * 1024


class ClientConnection:
    """What a request knows of its client's connection; the server's protocol owns it.

    `is_full`: more of the answer waits for the client than the server writes ahead. `refusal` is
    what the connection itself has answered to a request whose body it has given up. While the
    connection lives it does not lead back to the protocol but by `_abort`, which goes with it.
    """

    __slots__ = ("_abort", "_waiters", "is_full", "is_lost", "on_lost", "refusal")

    def __init__(self, abort: Callable[[], None] = lambda: None) -> None:
        self.is_full = False
        self.is_lost = False
        self.on_lost: Callable[[], None] | None = None
        self.refusal: ApiError | None = None
        self._abort: Callable[[], None] | None = abort
        self._waiters: list[asyncio.Future[None]] = []  # of answers to requests sent ahead, too

    def lose(self) -> None:
        """Tell who watches that the client is gone."""
        self.is_lost = True
        self._abort = None
        self.note_room()
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

    def note_room(self) -> None:
        """Take note that the client has read nearly all, or will read no more."""
        self.is_full = False
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def written(self) -> None:
        """Wait until the client has read nearly all that was sent, or is gone."""
        while self.is_full:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)

    def let_go(self) -> None:
        """Wait for the client no more: where it has not read its answer, the connection ends.

        Call it when a request is over whose answer was not sent, or not read, to its end: what is
        unread would stay otherwise.
        """
        if self.is_full and self._abort is not None:
            self._abort()


def client_connection(scope: Mapping[str, Any]) -> ClientConnection | None:
    """Return the connection of an ASGI scope; None under a server that tells of none."""
    found: ClientConnection | None = (scope.get("extensions") or {}).get(EXTENSION)
    return found


async def send_last(
    send: Callable[[Message], Awaitable[None]],
    message: Message,
    connection: ClientConnection | None,
) -> None:
    """Send the last message of an answer, which may be all of it, as its client reads.

    Written at once, an answer would stay in the connection's buffer, however long, and its request
    would be over. So it is written in parts, and counts as running until the client has nearly all.
    """
    body = message.get("body", b"")
    last = max(0, len(body) - 1) // PART_BYTES * PART_BYTES
    for at in range(0, last, PART_BYTES):
        part = body[at : at + PART_BYTES]
        await send({"type": "http.response.body", "body": part, "more_body": True})
    if last:
        message = {**message, "body": body[last:]}
    await send(message)
    if connection is not None and connection.is_full:
        await connection.written()


def certificate_name(connection: ssl.SSLObject) -> str | None:
    """Return the subject of the other side's verified certificate, None where there is none."""
    certificate = connection.getpeercert()
    if not certificate:
        return None
    parts = [
        f"{key}={value}"
        for relative in reversed(certificate.get("subject", ()))
        for key, value in relative
    ]
    return ",".join(parts) or "unnamed"
