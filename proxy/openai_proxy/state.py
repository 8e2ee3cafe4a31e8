"""What the server says of itself: alive, ready, draining, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai_proxy.backends.base import Supervisor
    from openai_proxy.routing.probe import Probe


@dataclass(slots=True)
class ServerState:
    """Gathers the parts' own states for the health endpoints; owner: the lifecycle.

    `upstream_url` is what `/health` shows: the backend's own address while there is a backend.
    """

    upstream_url: str | None = None
    without_upstream: bool = False
    is_draining: bool = False
    probe: Probe | None = None
    backend: Supervisor | None = None

    @property
    def is_ready(self) -> bool:
        """Whether requests can be served now, and more of them should come."""
        return not self.is_draining and self.is_healthy

    @property
    def is_healthy(self) -> bool:
        """Whether the backend, if there is one, is ready, and the upstream has a ready model.

        Where no upstream is wanted, all is well once the endpoints are there.
        """
        if self.without_upstream:
            return self.probe is not None
        if self.backend is not None and not self.backend.is_ready:
            return False
        return self.probe is not None and self.probe.readiness.is_ready

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the upstream lists."""
        return self.probe.readiness.models if self.probe is not None else ()

    def report(self) -> dict[str, Any]:
        """Return the body of `GET /health`."""
        status = "healthy" if self.is_ready else "draining" if self.is_draining else "unhealthy"
        return {"status": status, "backend": self._upstream_report()}

    def _upstream_report(self) -> dict[str, Any]:
        report: dict[str, Any] = {"status": "ready" if self.is_healthy else "not_ready"}
        report["healthy"] = self.is_healthy
        report["url"] = self.upstream_url
        report["models"] = list(self.models)
        if self.backend is not None:
            report["url"] = self.backend.url
            report |= self.backend.report()
            if self.backend.is_ready and not self.is_healthy:
                report["status"] = "not_ready"
        if not self.is_healthy and self.probe is not None and self.probe.readiness.reason:
            report["reason"] = self.probe.readiness.reason
        return report
