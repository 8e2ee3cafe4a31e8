"""The proxy's Prometheus metrics; the only module that knows Prometheus.

Labels are bounded: paths are those that the server knows, models those that an upstream lists,
codes those of the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from openai_protocol.errors import ErrorCode
from openai_proxy.exchange import Exchange
from openai_proxy.request_metrics import RequestMetrics

NAMESPACE = "openai_proxy"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
# What a system that this replaces counts under a name of its own, in its own namespace.
OTHER_NAMES = {("seminstruct", "upstream_errors_total"): "shimmy_errors_total"}
_CODES = frozenset(str(code) for code in ErrorCode)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, of no use


class Metrics:
    """Counts what it hears as an observer of requests; `is_model` bounds a label."""

    def __init__(self, is_model: Callable[[str], bool], namespace: str = NAMESPACE) -> None:
        self._is_model = is_model
        self._namespace = namespace
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = RequestMetrics(namespace)
        registry.register(self._requests)
        self._errors = self._counter("errors_total", "Requests that ended with an error.", ["code"])
        self._upstream_errors = self._counters(
            "upstream_errors_total", "Requests that failed at the upstream.", ["code"]
        )
        self._upstream_retries = self._counter(
            "upstream_retries_total",
            "Requests sent once more, since the connection failed before the first byte.",
        )
        self._disconnects = self._counter(
            "client_disconnects_total", "Requests whose client left before the end."
        )
        self._backend_starts = self._counter(
            "backend_starts_total", "Times that the backend's process was started."
        )
        self._ready = Gauge(
            "ready", "1 while the server is ready, else 0.", namespace=namespace, registry=registry
        )

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, text, labels, namespace=self._namespace, registry=self.registry)

    def _counters(self, name: str, text: str, labels: Sequence[str]) -> list[Counter]:
        """Return the counter, and the one of the same thing under another system's name."""
        also = OTHER_NAMES.get((self._namespace, name))
        return [self._counter(each, text, labels) for each in (name, also) if each is not None]

    def request_started(self, exchange: Exchange) -> None:
        """Count a request as running."""
        self._requests.began()

    def request_finished(self, exchange: Exchange) -> None:
        """Count a request's end, by path, status and model, and its error."""
        self._requests.ended(
            exchange.route or OTHER,
            exchange.status or 0,
            self._model(exchange.model),
            exchange.duration_seconds,
            exchange.ttft_seconds,
        )
        if exchange.error_code is not None:
            self._errors.labels(_code(exchange.error_code)).inc()
        if exchange.is_client_gone:
            self._disconnects.inc()

    def upstream_failed(self, code: str) -> None:
        """Count a failure of the upstream."""
        for counter in self._upstream_errors:
            counter.labels(_code(code)).inc()

    def upstream_retried(self) -> None:
        """Count a second attempt."""
        self._upstream_retries.inc()

    def backend_started(self) -> None:
        """Count a start of the backend's process."""
        self._backend_starts.inc()

    def render(self, is_ready: bool) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._ready.set(is_ready)
        return generate_latest(self.registry)

    def _model(self, model: str | None) -> str:
        if model is None:
            return ""
        return model if self._is_model(model) else OTHER


def _code(code: str) -> str:
    """Return a code that may be a label: an upstream's own may be anything."""
    return code if code in _CODES else OTHER
