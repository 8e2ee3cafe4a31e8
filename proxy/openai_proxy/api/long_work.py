"""What holds up the event loop for long: done one at a time, with as long a pause after each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

Result = TypeVar("Result")


class LongWork:
    """Leaves half of the time to all other requests; owner: the endpoint, on its event loop.

    `clock` and `sleep` are in seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = asyncio.Lock()
        self._next_at = 0.0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, or raise what it raises, once its time has come."""
        clock = self._clock or asyncio.get_running_loop().time
        async with self._lock:
            began = clock()
            if began < self._next_at:
                await self._sleep(self._next_at - began)
                began = clock()
            try:
                return work()
            finally:
                ended = clock()
                self._next_at = ended + (ended - began)
