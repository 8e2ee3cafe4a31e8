"""OpenTelemetry traces: a span for each request, one below it for each attempt at an upstream.

The only module that knows OpenTelemetry; import it where traces are configured and nowhere else.
Names follow the semantic conventions for HTTP and for generative AI:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from openai_proxy import __version__
from openai_proxy.config.tracing import TracingSettings
from openai_proxy.exchange import Attempt, Exchange, loggable, loggable_code

CLOSE_SECONDS = 3.0
NAME = "openai_proxy"
_PATH = "/v1/traces"
_SAMPLER = "OTEL_TRACES_SAMPLER"
# Routes that generate, by what the conventions call it
_OPERATIONS = {
    "/chat/completions": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
    "/api/chat": "chat",
    "/api/generate": "text_completion",
    "/api/generate/stream": "text_completion",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})

log = structlog.get_logger("openai_proxy.tracing")


@dataclass(frozen=True, slots=True)
class _AttemptSpan:
    span: Span
    started_at: float  # by the clock of `Exchange`


class Tracing:
    """Turns what it hears into spans; owner of the provider and its exporter's thread.

    `clock` is the observing middleware's. A failure in here is logged once and hurts no request.
    """

    def __init__(
        self,
        provider: TracerProvider,
        quiet_paths: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(NAME, __version__)
        self._quiet_paths = quiet_paths
        self._clock = clock
        self._context = TraceContextTextMapPropagator()
        self._has_failed = False

    def request_started(self, exchange: Exchange) -> None:
        """Begin the request's span, below its caller's where there is one."""
        if exchange.path not in self._quiet_paths:
            self._guarded(self._begin_request, exchange)

    def request_finished(self, exchange: Exchange) -> None:
        """End the request's span."""
        if exchange.span is not None:
            self._guarded(self._end_request, exchange)

    def attempt_started(self, attempt: Attempt) -> None:
        """Begin an attempt's span, and have the upstream told of it."""
        if attempt.exchange.span is not None:
            self._guarded(self._begin_attempt, attempt)

    def attempt_finished(self, attempt: Attempt) -> None:
        """End an attempt's span."""
        if attempt.span is not None:
            self._guarded(self._end_attempt, attempt)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what is left, for so long at most; spans of a collector that is away are lost."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            log.warning("traces_lost", waited_seconds=seconds)

    def _guarded(self, step: Callable[[Any], None], subject: Exchange | Attempt) -> None:
        try:
            step(subject)
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                log.exception("tracing_failed")

    def _begin_request(self, exchange: Exchange) -> None:
        parent = self._context.extract(dict(exchange.trace_headers), Context())
        method = exchange.method if exchange.method in _METHODS else "_OTHER"
        attributes: dict[str, str | int | float] = {
            "http.request.method": method,
            "url.path": loggable(exchange.path, 256),
        }
        if exchange.server is not None:
            host, port = exchange.server
            attributes |= {"server.address": host} | ({} if port is None else {"server.port": port})
        name = method if method != "_OTHER" else "HTTP"
        exchange.span = span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        ids = span.get_span_context()
        exchange.log_fields["trace_id"] = format(ids.trace_id, "032x")
        exchange.log_fields["span_id"] = format(ids.span_id, "016x")

    def _end_request(self, exchange: Exchange) -> None:
        span: Span = exchange.span
        if span.is_recording():
            if exchange.route is not None:
                span.update_name(f"{exchange.method} {exchange.route}")
                span.set_attribute("http.route", exchange.route)
            if exchange.status is not None:
                span.set_attribute("http.response.status_code", exchange.status)
            if exchange.is_client_gone:
                span.set_attribute(f"{NAME}.client_gone", True)
            if exchange.num_attempts > 1:
                span.set_attribute("http.request.resend_count", exchange.num_attempts - 1)
            span.set_attributes(_generation(exchange, exchange.started_at))
            has_failed = exchange.status is not None and exchange.status >= 500
            is_broken_stream = exchange.status == 200 and exchange.error_code is not None
            _set_outcome(span, exchange.error_code, is_error=has_failed or is_broken_stream)
        span.end()

    def _begin_attempt(self, attempt: Attempt) -> None:
        exchange, target = attempt.exchange, attempt.target
        context = set_span_in_context(exchange.span, Context())
        operation, model = operation_of(exchange.route), exchange.model
        attributes: dict[str, str | int | float] = {
            "http.request.method": exchange.method,
            "gen_ai.provider.name": target.dialect,
            "server.address": target.host,
            "network.peer.address": attempt.peer,
            f"{NAME}.upstream": target.name,
        }
        if target.port is not None:
            attributes["server.port"] = target.port
        if exchange.num_attempts > 1:
            attributes["http.request.resend_count"] = exchange.num_attempts - 1
        words = (operation or exchange.method, loggable(model) if model and operation else "")
        name = " ".join(word for word in words if word)
        span = self._tracer.start_span(name, context, SpanKind.CLIENT, attributes)
        carrier: dict[str, str] = {}
        self._context.inject(carrier, set_span_in_context(span, Context()))
        attempt.headers[:] = carrier.items()
        attempt.span = _AttemptSpan(span, self._clock())

    def _end_attempt(self, attempt: Attempt) -> None:
        begun: _AttemptSpan = attempt.span
        span = begun.span
        if span.is_recording():
            if attempt.status is not None:
                span.set_attribute("http.response.status_code", attempt.status)
            span.set_attributes(_generation(attempt.exchange, begun.started_at))
            _set_outcome(span, attempt.error_code, is_error=attempt.error_code is not None)
        span.end()


def operation_of(route: str | None) -> str | None:
    """Return what the conventions call an endpoint's operation; None where it is none of them."""
    return _OPERATIONS.get((route or "").removeprefix("/v1"))


def _generation(exchange: Exchange, started_at: float) -> dict[str, str | int | float]:
    """Return what is known of a generation; the time to its first chunk from `started_at`."""
    operation = operation_of(exchange.route)
    if operation is None:
        return {}
    found: dict[str, str | int | float] = {"gen_ai.operation.name": operation}
    if exchange.model is not None:
        found["gen_ai.request.model"] = loggable(exchange.model)
    if exchange.is_stream:
        found["gen_ai.request.stream"] = True
        if exchange.ttft_seconds is not None and exchange.first_byte_at is not None:
            found["gen_ai.response.time_to_first_chunk"] = exchange.first_byte_at - started_at
    if exchange.prompt_tokens is not None:
        found["gen_ai.usage.input_tokens"] = exchange.prompt_tokens
    if exchange.completion_tokens is not None:
        found["gen_ai.usage.output_tokens"] = exchange.completion_tokens
    return found


def _set_outcome(span: Span, code: str | None, *, is_error: bool) -> None:
    """Set an error's code, never its text."""
    if code is not None:
        span.set_attribute("error.type", loggable_code(code))
    if is_error:
        span.set_status(Status(StatusCode.ERROR))


class ToldExporter(SpanExporter):
    """Exports by another; says once when that begins to fail, and once when it works again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._num_lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; those that cannot be sent are lost, and counted."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._lose(len(spans), type(error).__name__)
            return SpanExportResult.FAILURE
        if result != SpanExportResult.SUCCESS:
            self._lose(len(spans), "the collector did not take them")
        elif self._num_lost:
            log.info("traces_sent_again", lost_spans=self._num_lost)
            self._num_lost = 0
        return result

    def shutdown(self) -> None:
        """Stop; an export that waits to try again gives up."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what the other still holds."""
        return self._exporter.force_flush(timeout_millis)

    def _lose(self, count: int, reason: str) -> None:
        if not self._num_lost:
            log.warning("traces_not_sent", reason=reason)
        self._num_lost += count


def build(settings: TracingSettings, quiet_paths: frozenset[str]) -> Tracing:
    """Return the tracing that the settings ask for; spans are sent by a thread, in batches."""
    assert settings.otlp_endpoint is not None
    # Its own lines tell of every try; `ToldExporter` says what matters.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    url = settings.otlp_endpoint.removesuffix(_PATH) + _PATH
    sampler = None  # the variable's, which the provider reads itself
    if not os.environ.get(_SAMPLER):
        sampler = ParentBased(TraceIdRatioBased(settings.trace_sample))
    own = Resource({SERVICE_NAME: "openai-proxy", SERVICE_VERSION: __version__})
    resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(ToldExporter(OTLPSpanExporter(endpoint=url))))
    return Tracing(provider, quiet_paths)
