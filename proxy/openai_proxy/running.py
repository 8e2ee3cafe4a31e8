"""What can end a request early: its deadline, its client's leaving, the server's shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from http_edge.client_connection import EXTENSION, ClientConnection
from openai_protocol.errors import ApiError, DeadlineExceeded
from openai_proxy.exchange import ClientGoneError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
DEADLINE_STEP_SECONDS = 0.01


class Running:
    """The requests that run now; owner: the server, used in its event loop only.

    With a `parent` they are also among those of the parent. One timer serves all their deadlines:
    one for each would cost each request more.
    """

    def __init__(self, parent: Running | None = None) -> None:
        self._leashes: set[Leash] = set()
        self._parent = parent
        self._is_empty: asyncio.Event | None = None  # while somebody waits for it
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        return len(self._leashes)

    def add(self, leash: Leash) -> None:
        """Take note of a request that begins."""
        self._leashes.add(leash)
        if self._parent is not None:
            self._parent.add(leash)

    def remove(self, leash: Leash) -> None:
        """Take note of a request that has ended."""
        self._leashes.discard(leash)
        if not self._leashes and self._is_empty is not None:
            self._is_empty.set()
        if self._parent is not None:
            self._parent.remove(leash)

    async def wait_for_none(self) -> None:
        """Wait until no request runs."""
        while self._leashes:
            if self._is_empty is None or self._is_empty.is_set():
                self._is_empty = asyncio.Event()
            await self._is_empty.wait()

    def leash(self, timeout_seconds: float) -> Leash:
        """Return an async context for one request, to be entered by the task that serves it."""
        return Leash(self, timeout_seconds)

    def watch_deadline(self, deadline: float) -> None:
        """See to it that requests are ended at this time of the event loop, if they run then.

        A burst of deadlines is looked at in steps of `DEADLINE_STEP_SECONDS`.
        """
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer_at = max(deadline, loop.time() + DEADLINE_STEP_SECONDS)
        self._timer = loop.call_at(self._timer_at, self._on_timer)

    def interrupt_all(self, reason: Callable[[], ApiError]) -> int:
        """End every running request with an error; returns how many there were."""
        leashes = list(self._leashes)
        for leash in leashes:
            leash.interrupt(reason())
        return len(leashes)

    def _on_timer(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for leash in self._leashes:
            leash.end_if_late(now)
        deadlines = (leash.deadline for leash in self._leashes if leash.deadline > now)
        first = min(deadlines, default=None)
        if first is not None:
            self.watch_deadline(first)


class Leash:
    """Holds the task that serves one request, so that others can end it with a reason.

    Invariant: an interruption reaches the task inside the `async with`, which then raises the
    reason instead of the cancellation. (The task is suspended inside when it is cancelled, so the
    cancellation is delivered there and never later.)
    """

    def __init__(self, running: Running, timeout_seconds: float) -> None:
        self.deadline = 0.0  # in the event loop's time, from when it is entered
        self._running = running
        self._timeout_seconds = timeout_seconds
        self._reason: Exception | None = None
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._connection: ClientConnection | None = None
        self._cancelling = 0

    async def __aenter__(self) -> Leash:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self.deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        self._running.watch_deadline(self.deadline)
        self._running.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._running.remove(self)
        self.unwatch()
        if self._reason is None:
            return
        is_ours = self._task.uncancel() <= self._cancelling
        if is_ours and isinstance(error, asyncio.CancelledError):
            raise self._reason from None

    def watch(self, scope: Scope, receive: Receive) -> None:
        """Interrupt the request when its client leaves; call it once the body is read.

        The server's connection tells of that; where there is none, a task waits for it. Raises
        ClientGoneError where the client has left already.
        """
        self._connection = (scope.get("extensions") or {}).get(EXTENSION)
        if self._connection is None:
            self._watcher = asyncio.create_task(self._watch(receive))
        elif self._connection.is_lost:
            raise ClientGoneError
        else:
            self._connection.on_lost = self._on_lost

    def unwatch(self) -> None:
        """Let the client go: servers report a completed answer as a disconnect, too."""
        if self._watcher is not None:
            self._watcher.cancel()
        # The next request on the connection may watch it already.
        if self._connection is not None and self._connection.on_lost == self._on_lost:
            self._connection.on_lost = None

    def interrupt(self, reason: Exception) -> None:
        """End the request with this error; a second reason is ignored."""
        if self._reason is not None:
            return
        assert self._task is not None
        self._reason = reason
        self._task.cancel()

    def end_if_late(self, now: float) -> None:
        """End the request if its deadline has passed."""
        if now >= self.deadline:
            self.interrupt(
                DeadlineExceeded(f"The request took longer than {self._timeout_seconds:g} seconds.")
            )

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._on_lost()

    def _on_lost(self) -> None:
        self.interrupt(ClientGoneError())
