"""Looks at an upstream's list of models again and again: is it there, what is ready?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from openai_protocol.errors import ApiError
from openai_proxy.routing.retry import read
from openai_proxy.routing.upstream import Upstream

PROBE_TIMEOUT_SECONDS = 5.0
FASTER_WHILE_NOT_READY = 4
# One lost probe of an upstream that was ready may be chance; two in a row are not.
FAILURES_TO_NOT_READY = 2
_NO_SUCH_LIST = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the last looks have shown; `models` is empty where the upstream lists none."""

    is_ready: bool = False
    models: tuple[str, ...] = ()
    reason: str = "not looked at yet"


class Probe:
    """Keeps `readiness` up to date while `run` runs; owner of that state."""

    def __init__(
        self,
        upstream: Callable[[], Upstream | None],
        interval_seconds: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_change: Callable[[Readiness], None] = lambda _: None,
    ) -> None:
        self.readiness = Readiness()
        self._upstream = upstream
        self._interval_seconds = interval_seconds
        self._sleep = sleep
        self._on_change = on_change
        self._failures = 0

    async def run(self) -> None:
        """Look, wait, look again; until cancelled. With an interval of 0: never look, be ready."""
        if not self._interval_seconds:
            self.readiness = Readiness(is_ready=True, reason="")
            self._on_change(self.readiness)
            await asyncio.Event().wait()
        while True:
            await self.look()
            is_ready = self.readiness.is_ready
            wait = self._interval_seconds / (1 if is_ready else FASTER_WHILE_NOT_READY)
            await self._sleep(wait)

    async def look(self) -> Readiness:
        """Look once and return what holds now."""
        upstream = self._upstream()
        if upstream is None:
            found = Readiness(reason="there is no upstream")
            self._failures = FAILURES_TO_NOT_READY
        else:
            found = await look_at(upstream)
            self._failures = 0 if found.is_ready else self._failures + 1
        was = self.readiness
        if found.is_ready or not was.is_ready or self._failures >= FAILURES_TO_NOT_READY:
            self.readiness = found
            if found != was:
                self._on_change(found)
        return self.readiness


async def look_at(upstream: Upstream) -> Readiness:
    """Ask an upstream for its models; an upstream without such a list is ready if it answers."""
    try:
        head, body = await read(upstream, upstream.dialect.models_path, PROBE_TIMEOUT_SECONDS)
    except ApiError as error:
        return Readiness(reason=str(error.code))
    if head.status in _NO_SUCH_LIST:
        return Readiness(is_ready=True, reason="")
    if head.status != 200:
        return Readiness(reason=f"HTTP {head.status}")
    models = upstream.dialect.models(body)
    if models is None:
        return Readiness(reason="its list of models cannot be understood")
    return Readiness(bool(models), models, "" if models else "no model is ready")
