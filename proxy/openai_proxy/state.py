"""What the server says of itself: alive, ready, draining, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openai_proxy import health_forms
from openai_proxy.health_forms import HealthForm, Report, plain, semantic_explorer

if TYPE_CHECKING:
    from openai_proxy.backends.base import Supervisor
    from openai_proxy.config import Settings
    from openai_proxy.routing.probe import Probe


@dataclass(slots=True)
class ServerState:
    """Gathers the parts' own states for the health endpoints; owner: the lifecycle.

    `upstream_url` is what `/health` shows: the backend's own address while there is a backend.
    """

    upstream_url: str | None = None
    without_upstream: bool = False
    is_draining: bool = False
    probes: Mapping[str, Probe] = field(default_factory=dict)
    backend: Supervisor | None = None
    health_form: HealthForm = plain
    provider: str = "openai"
    http_config: dict[str, Any] = field(default_factory=dict)

    def follow(self, settings: Settings) -> None:
        """Tell of these settings from now on, in the form that they name."""
        dialect = next((one.dialect for one in settings.all_upstreams), "openai")
        self.upstream_url = settings.first_upstream_url
        self.without_upstream = settings.without_upstream
        self.health_form = health_forms.FORMS[settings.health]
        self.provider = settings.provider or settings.backend or dialect
        self.http_config = health_forms.http_config(
            settings.request_timeout_seconds,
            settings.connect_timeout_seconds,
            settings.max_retries,
        )

    @property
    def is_ready(self) -> bool:
        """Whether requests can be served now, and more of them should come."""
        return not self.is_draining and self.is_healthy

    @property
    def is_healthy(self) -> bool:
        """Whether the backend, if there is one, is ready, and an upstream has a ready model.

        Where no upstream is wanted, all is well once the endpoints are there.
        """
        if self.without_upstream:
            return bool(self.probes)
        if self.backend is not None and not self.backend.is_ready:
            return False
        return any(probe.readiness.is_ready for probe in self.probes.values())

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the upstreams list."""
        found = (name for probe in self.probes.values() for name in probe.readiness.models)
        return tuple(dict.fromkeys(found))

    def lists(self, model: str) -> bool:
        """Tell whether an upstream lists this model."""
        return any(model in probe.readiness.models for probe in self.probes.values())

    def report(self) -> dict[str, Any]:
        """Return the body of `GET /health`."""
        return self.health_form(self._report())

    def readiness(self) -> dict[str, Any]:
        """Return the body of `GET /health/ready`."""
        return semantic_explorer(self._report())

    def _report(self) -> Report:
        return Report(
            is_ready=self.is_ready,
            is_draining=self.is_draining,
            backend=self._upstream_report(),
            provider=self.provider,
            http_config=self.http_config,
            upstreams=self._each_upstream() if len(self.probes) > 1 else {},
        )

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
        first = next(iter(self.probes.values()), None)
        if not self.is_healthy and first is not None and first.readiness.reason:
            report["reason"] = first.readiness.reason
        return report

    def _each_upstream(self) -> dict[str, Any]:
        """Return what is known of each upstream, where there are several."""
        report = {}
        for name, probe in self.probes.items():
            found = probe.readiness
            report[name] = {
                "status": "ready" if found.is_ready else "not_ready",
                "models": list(found.models),
            }
            if found.reason:
                report[name]["reason"] = found.reason
        return report
