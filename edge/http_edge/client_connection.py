"""What a request knows of its client's connection, and the name in a client's certificate."""

from __future__ import annotations

import ssl
from collections.abc import Callable

EXTENSION = "http_edge.connection"  # among ASGI's extensions


class ClientConnection:
    """What a request knows of its client's connection; the server's protocol owns it.

    It does not lead back to the protocol, which would keep itself alive by the scope otherwise.
    """

    __slots__ = ("is_lost", "on_lost")

    def __init__(self) -> None:
        self.is_lost = False
        self.on_lost: Callable[[], None] | None = None

    def lose(self) -> None:
        """Tell who watches that the client is gone."""
        self.is_lost = True
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()


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
