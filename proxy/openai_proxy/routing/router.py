"""From a request's model to the upstream that serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openai_protocol.errors import ErrorCode, Unavailable

if TYPE_CHECKING:
    from openai_proxy.routing.upstream import Upstream

RETRY_AFTER_SECONDS = 2.0


class Router:
    """Knows the upstream, once there is one; owner: the lifecycle, which sets it.

    A backend that is not ready is no upstream; an upstream that others run always is one, since
    it can say itself what it lacks.
    """

    def __init__(self, *, without_upstream: bool = False) -> None:
        self.without_upstream = without_upstream
        self._upstream: Upstream | None = None

    def use(self, upstream: Upstream | None) -> None:
        """Send requests there from now on, or nowhere."""
        self._upstream = upstream

    @property
    def upstream(self) -> Upstream | None:
        """The upstream, if there is one now."""
        return self._upstream

    def route(self, model: str | None) -> Upstream:
        """Return the upstream for a model; raises Unavailable while there is none."""
        if self.without_upstream:
            raise Unavailable("There is no model here yet.", code=ErrorCode.MODEL_NOT_READY)
        if self._upstream is None:
            raise Unavailable(
                "The model is not ready yet; please try again in a moment.",
                code=ErrorCode.MODEL_NOT_READY,
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        return self._upstream
