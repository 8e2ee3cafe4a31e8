"""A stand-in for a collector of traces: OTLP over HTTP on a real socket."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from openai_proxy.server import listen
from tests.proxy.harness import until


def _has_packages() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


needs_packages = pytest.mark.skipif(
    not _has_packages(), reason="needs the packages of the extra `tracing`"
)


@dataclass
class Span:
    """A span as it came over the wire; ids in hex, times in seconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    is_error: bool
    seconds: float
    attributes: dict[str, Any]


@dataclass
class Collector:
    """Takes spans; answers with `status`, or not at all while it is None."""

    spans: list[Span] = field(default_factory=list)
    refused: list[Span] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int | None = 200
    url: str = ""

    async def post(self, request: web.Request) -> web.Response:
        """Take a batch."""
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert request.content_type == "application/x-protobuf"
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.status is None:
            await asyncio.sleep(3600)
        self._take(body, self.spans if self.status == 200 else self.refused)
        return web.Response(status=self.status or 500)

    async def all_of(self, count: int, seconds: float = 10) -> list[Span]:
        """Wait until so many spans have come; those of servers first, then by their start."""
        await until(lambda: len(self.spans) >= count, seconds)
        assert len(self.spans) == count, self.spans
        return sorted(self.spans, key=lambda span: span.kind, reverse=True)

    def _take(self, body: bytes, spans: list[Span]) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )
        from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = _plain(resource.resource.attributes)
            for scope in resource.scope_spans:
                spans += [
                    Span(
                        name=span.name,
                        kind=WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        is_error=span.status.code == 2,
                        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                        attributes=_plain(span.attributes),
                    )
                    for span in scope.spans
                ]


def _plain(attributes: Any) -> dict[str, Any]:
    """Return wire attributes as a dictionary."""
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in attributes
    }


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """Run a collector until the block ends."""
    standin = Collector()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", standin.post)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    listener = listen("127.0.0.1", 0)
    await web.SockSite(runner, listener).start()
    host, port = listener.getsockname()
    standin.url = f"http://{host}:{port}"
    try:
        yield standin
    finally:
        await runner.cleanup()
