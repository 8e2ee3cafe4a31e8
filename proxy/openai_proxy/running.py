"""What can end a request early: its deadline, its client's leaving, the server's shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from openai_protocol.errors import ApiError, DeadlineExceeded
from openai_proxy.exchange import ClientGoneError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Running:
    """The requests that run now; owner: the server, used in its event loop only.

    With a `parent` they are also among those of the parent.
    """

    def __init__(self, parent: Running | None = None) -> None:
        self._leashes: set[Leash] = set()
        self._parent = parent
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._leashes)

    def add(self, leash: Leash) -> None:
        """Take note of a request that begins."""
        self._leashes.add(leash)
        self._is_empty.clear()
        if self._parent is not None:
            self._parent.add(leash)

    def remove(self, leash: Leash) -> None:
        """Take note of a request that has ended."""
        self._leashes.discard(leash)
        if not self._leashes:
            self._is_empty.set()
        if self._parent is not None:
            self._parent.remove(leash)

    async def wait_for_none(self) -> None:
        """Wait until no request runs."""
        await self._is_empty.wait()

    def leash(self, timeout_seconds: float) -> Leash:
        """Return an async context for one request, to be entered by the task that serves it."""
        return Leash(self, timeout_seconds)

    def interrupt_all(self, reason: Callable[[], ApiError]) -> int:
        """End every running request with an error; returns how many there were."""
        leashes = list(self._leashes)
        for leash in leashes:
            leash.interrupt(reason())
        return len(leashes)


class Leash:
    """Holds the task that serves one request, so that others can end it with a reason.

    Invariant: an interruption reaches the task inside the `async with`, which then raises the
    reason instead of the cancellation. (The task is suspended inside when it is cancelled, so the
    cancellation is delivered there and never later.)
    """

    def __init__(self, running: Running, timeout_seconds: float) -> None:
        self._running = running
        self._timeout_seconds = timeout_seconds
        self._reason: Exception | None = None
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelling = 0

    async def __aenter__(self) -> Leash:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(
            self._timeout_seconds, self._on_deadline
        )
        self._running.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        assert self._timer is not None
        self._running.remove(self)
        self._timer.cancel()
        self.unwatch()
        if self._reason is None:
            return
        is_ours = self._task.uncancel() <= self._cancelling
        if is_ours and isinstance(error, asyncio.CancelledError):
            raise self._reason from None

    def watch(self, receive: Receive) -> None:
        """Interrupt the request when its client leaves; call it once the body is read."""
        self._watcher = asyncio.create_task(self._watch(receive))

    def unwatch(self) -> None:
        """Let the client go: servers report a completed answer as a disconnect, too."""
        if self._watcher is not None:
            self._watcher.cancel()

    def interrupt(self, reason: Exception) -> None:
        """End the request with this error; a second reason is ignored."""
        if self._reason is not None:
            return
        assert self._task is not None
        self._reason = reason
        self._task.cancel()

    def _on_deadline(self) -> None:
        self.interrupt(
            DeadlineExceeded(f"The request took longer than {self._timeout_seconds:g} seconds.")
        )

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientGoneError())
