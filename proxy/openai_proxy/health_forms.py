"""The forms of `GET /health`: one for each system that this replaces, and all of them in one.

Pure. All but one begin with `"status": "healthy"`; none contradicts another, so that the superset
holds the fields of all. The default is the superset without the upstream's address, which is
nobody's business: anyone may ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """What the server knows of itself and of its upstream.

    `backend` says of the upstream at least `status`, `healthy` and `url`; `provider` is its name,
    `http_config` how it is asked: times in seconds, and retries. `upstreams` tells of each by its
    name, where there are several.
    """

    is_ready: bool
    is_draining: bool
    backend: Json
    provider: str
    http_config: Json = field(default_factory=dict)
    upstreams: Json = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """Whether the upstream can serve, though the server itself may be draining."""
        return bool(self.backend["healthy"])

    @property
    def status(self) -> str:
        """The server's own state in a word."""
        if self.is_ready:
            return "healthy"
        return "draining" if self.is_draining else "unhealthy"


HealthForm = Callable[[Report], Json]


def superset(report: Report) -> Json:
    """Return the fields of all other forms, and all that is known of the upstream."""
    return {
        **deterministic(report),
        "backend": report.backend,
        **inference_service(report),
        **seminstruct(report),
        **shimmy(report),
        **semantic_explorer(report),
        **({"upstreams": report.upstreams} if report.upstreams else {}),
        "status": report.status,
    }


def plain(report: Report) -> Json:
    """Return the superset without addresses."""
    form = superset(report)
    del form["shimmy_url"]
    form["backend"] = {name: value for name, value in report.backend.items() if name != "url"}
    return form


def inference_service(report: Report) -> Json:
    """Return the form of the Inference Service: who is asked, and how patiently."""
    return {
        "status": report.status,
        "provider": report.provider,
        "http_config": report.http_config,
    }


def seminstruct(report: Report) -> Json:
    """Return SemInstruct's form; without its upstream it is `degraded`."""
    return {
        "status": report.status if report.is_healthy else "degraded",
        "shimmy_url": report.backend["url"],
        "shimmy_healthy": report.is_healthy,
    }


def shimmy(report: Report) -> Json:
    """Return the form of the Shimmy OpenAI Proxy."""
    upstream = "healthy" if report.is_healthy else "unhealthy"
    return {"status": report.status, "shimmy_status": upstream}


def deterministic(report: Report) -> Json:
    """Return the form of the Deterministic Inference Server."""
    backend = {name: report.backend[name] for name in ("status", "healthy", "url")}
    return {"status": report.status, "backend": backend}


def semantic_explorer(report: Report) -> Json:
    """Return the form of Semantic Explorer's LLM Inference API, which is that of its readiness."""
    status = "ok" if report.is_ready else "draining" if report.is_draining else "not_ready"
    return {"status": status, "llm_models_loaded": report.is_healthy}


FORMS: Mapping[str, HealthForm] = {
    "plain": plain,
    "superset": superset,
    "seminstruct": seminstruct,
    "inference-service": inference_service,
    "shimmy": shimmy,
    "deterministic": deterministic,
    "semantic-explorer": semantic_explorer,
}


def http_config(timeout_seconds: float, connect_timeout_seconds: float, max_retries: int) -> Json:
    """Return how an upstream is asked, as the Inference Service tells it."""
    return {
        "timeout_secs": _whole(timeout_seconds),
        "connect_timeout_secs": _whole(connect_timeout_seconds),
        "max_retries": max_retries,
    }


def _whole(seconds: float) -> float:
    return int(seconds) if seconds == int(seconds) else seconds
