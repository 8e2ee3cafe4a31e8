"""Whose turn is next where one thing is done at a time: fair among tenants. No clock."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class Full(Exception):
    """More wait than may, and no tenant has more of them than the newcomer's."""


class Turns:
    """Gives turns one at a time, the tenants' in rotation; owner: a lane, on its event loop.

    When as many wait as may, the last one of the tenant that has most of them gives way to one of a
    tenant that has fewer.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._is_taken = False
        # Of each tenant those that wait; the first one is next.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        """How many wait for their turn."""
        return sum(map(len, self._waiting.values()))

    async def take(self, tenant: str) -> None:
        """Wait for a turn, which `give_back` ends; raises Full."""
        if not self._is_taken:
            self._is_taken = True
            return
        if self.num_waiting >= self._max_waiting:
            self._make_room(tenant)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back()  # it came in the same moment
            else:
                self._forget(tenant, turn)
            raise

    def give_back(self) -> None:
        """End a turn; the next one begins."""
        while self._waiting:
            tenant, waiting = self._waiting.popitem(last=False)
            turn = waiting.popleft()
            if waiting:
                self._waiting[tenant] = waiting
            if not turn.done():  # else it was cancelled, and is about to leave
                turn.set_result(None)
                return
        self._is_taken = False

    def _make_room(self, tenant: str) -> None:
        most = max(self._waiting, key=lambda name: len(self._waiting[name]), default=tenant)
        own = self._waiting.get(tenant, ())
        if len(own) + 1 >= len(self._waiting.get(most, ())):
            raise Full
        last = self._waiting[most][-1]
        self._forget(most, last)
        if not last.done():
            last.set_exception(Full())

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(tenant)
        if waiting is not None and turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[tenant]
