"""All connections of a server: how many there may be, and which are too slow."""

from __future__ import annotations

import asyncio
from typing import Protocol

from http_edge.bounds import Bounds
from http_edge.bytes_in_flight import ByteBudget


class Connection(Protocol):
    """A connection as its server looks after it."""

    def check(self, now: float) -> None:
        """End it if its client is too slow; the time is the event loop's, in seconds."""

    def drop(self) -> None:
        """End it, for another that needs its place."""


class Connections:
    """Looks after a server's connections; owner: the server, used in its event loop only.

    `waiting` are those whose clients have something to send, the longest first: a head, the rest
    of a body, or, between two requests, nothing yet. Bounds can be swapped at any time. One timer
    serves all, while there are any: one for each request would cost each more.
    """

    def __init__(self, bounds: Bounds, budget: ByteBudget) -> None:
        self.bounds = bounds
        self.budget = budget
        self.waiting: dict[Connection, None] = {}
        self._open: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> bool:
        """Take a new one in; False where there is no place for it.

        When all places are taken, the one that waits for its client the longest gives way.
        """
        if len(self._open) >= self.bounds.max_connections:
            longest = next(iter(self.waiting), None)
            if longest is None:
                return False
            self.remove(longest)
            longest.drop()
        self._open.add(connection)
        self.waiting[connection] = None
        if self._timer is None:
            self._set_timer()
        return True

    def remove(self, connection: Connection) -> None:
        """Forget one that is over; may be called twice."""
        self._open.discard(connection)
        self.waiting.pop(connection, None)

    def look(self) -> None:
        """Look at each once; those that are too slow end."""
        now = asyncio.get_running_loop().time()
        for connection in list(self._open):
            connection.check(now)

    def _on_timer(self) -> None:
        self._timer = None
        self.look()
        if self._open:
            self._set_timer()

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.bounds.look_seconds, self._on_timer)
