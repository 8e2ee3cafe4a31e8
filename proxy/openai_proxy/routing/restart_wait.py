"""What has sent its client nothing yet waits for the proxy's own backend while that restarts.

An upstream that others run is not waited for: there may be another one, and nobody here knows when
it comes back. The proxy starts its own backend again itself, within seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from openai_protocol.errors import ApiError, ErrorCode, Unavailable
from openai_proxy.config.upstreams import DEFAULT_UPSTREAM
from openai_proxy.routing.router import Route, Router

if TYPE_CHECKING:
    from openai_proxy.routing.upstream import Upstream

Result = TypeVar("Result")
MAX_RESTARTS = 2  # that one request waits for: it may be what ends the backend
MAX_WAITING = 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024
# From the first failed connection until it is known here that the backend has ended
NOTICE_SECONDS = 3.0
_CUT_OFF = frozenset(
    {
        ErrorCode.UPSTREAM_CONNECTION_FAILED,
        ErrorCode.UPSTREAM_STREAM_BROKEN,
        ErrorCode.UPSTREAM_INVALID_RESPONSE,
        ErrorCode.SERVER_SHUTTING_DOWN,
    }
)

log = structlog.get_logger("openai_proxy")


@dataclass(frozen=True, slots=True)
class OwnBackend:
    """The backend that the proxy runs; `wait_seconds` 0: its restarts are not waited for.

    `is_restarting` tells whether it has been ready, and is to be ready again.
    """

    wait_seconds: float
    is_restarting: Callable[[], bool]


class RestartWait:
    """Runs requests on the upstream of their model, and again on one that was started anew.

    Owner: the service. Bounded: how many wait, with how large bodies, how long, and how often.
    """

    def __init__(self, router: Router, backend: OwnBackend | None = None) -> None:
        self.router = router
        self.num_waiting = 0
        self._num_bytes = 0
        self._backend = backend if backend is not None and backend.wait_seconds else None

    @property
    def has_backend(self) -> bool:
        """Whether there is a backend of the proxy's own to wait for; else `run` adds nothing."""
        return self._backend is not None

    def found(self, model: str | None) -> Route | None:
        """Return the route of a model that needs no waiting; None where `route` may find one.

        Raises NotFound, as the router.
        """
        try:  # `suppress` would cost each request three calls
            return self.router.route(model)
        except Unavailable:
            return None

    async def route(self, model: str | None, num_bytes: int) -> Route:
        """Return the route of a model, where need be after a restart; `num_bytes` is the body's.

        Raises ApiError, as the router.
        """
        return await self._found(lambda: self.router.route(model), num_bytes)

    async def run(
        self,
        route: Route,
        num_bytes: int,
        attempt: Callable[[Upstream], Awaitable[Result]],
        can_retry: Callable[[], bool] = lambda: True,
    ) -> Result:
        """Return what `attempt` makes of a route's upstream.

        It is called again where the backend ended before the client got anything, which `can_retry`
        tells. Raises ApiError, as the last attempt, or as `route`.
        """
        upstream = route.upstream
        num_restarts = 0
        while True:
            try:
                return await attempt(upstream)
            except ApiError as error:
                if num_restarts == MAX_RESTARTS or not can_retry():
                    raise
                if not await self._has_ended(route, upstream, error):
                    raise
            num_restarts += 1
            upstream = await self._found(self.router.backend, num_bytes)

    async def _found(self, find: Callable[[], Result], num_bytes: int) -> Result:
        """Return what `find` finds, now or after a restart; raises Unavailable as it does."""
        backend = self._backend
        try:
            return find()
        except Unavailable:
            if backend is None or not backend.is_restarting() or not self._has_room(num_bytes):
                raise
        with self._place(num_bytes), suppress(TimeoutError):
            async with asyncio.timeout(backend.wait_seconds):
                while True:
                    await self.router.changed()
                    with suppress(Unavailable):
                        return find()
        return find()  # which says why there is none

    async def _has_ended(self, route: Route, upstream: Upstream, error: ApiError) -> bool:
        """Tell whether an attempt has failed since the backend that it was sent to has ended."""
        if self._backend is None or route.resolved.upstream != DEFAULT_UPSTREAM:
            return False
        if error.code not in _CUT_OFF:
            return False
        try:
            async with asyncio.timeout(NOTICE_SECONDS):
                while self.router.upstreams.get(DEFAULT_UPSTREAM) is upstream:
                    await self.router.changed()
        except TimeoutError:
            return False
        log.info("backend_ended_under_request", code=str(error.code))
        return True

    def _has_room(self, num_bytes: int) -> bool:
        return self.num_waiting < MAX_WAITING and self._num_bytes + num_bytes <= MAX_WAITING_BYTES

    @contextmanager
    def _place(self, num_bytes: int) -> Iterator[None]:
        self.num_waiting += 1
        self._num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_waiting -= 1
            self._num_bytes -= num_bytes
