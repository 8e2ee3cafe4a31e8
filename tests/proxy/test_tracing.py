"""Traces: what a collector gets, what upstreams are told, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from openai_proxy.config import ConfigError, load, tracing
from tests.proxy.collector import Collector, Span, collector, needs_packages
from tests.proxy.harness import (
    CHAT,
    DONE,
    MESSAGES,
    Proxy,
    StandIn,
    answered_json,
    chunk,
    proxy,
    refused_port,
    streamed,
    until,
)
from tests.proxy.log_lines import logged
from tests.proxy.processes import PYTHONPATH, ROOT, STANDIN, environment, process
from tests.proxy.test_access_log import SECRET, USAGE_CHUNK
from tests.proxy.test_retry import Pods, pods, reset  # noqa: F401  # a fixture

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = CALLER[:-1] + "0"
URL = {"upstream_url": "http://127.0.0.1:1"}
BODY = {"model": "tiny", "messages": MESSAGES}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
async def traces() -> AsyncIterator[Collector]:
    async with collector() as standin:
        yield standin


@pytest.fixture
async def traced(traces: Collector, upstream: StandIn) -> AsyncIterator[Proxy]:
    """A proxy that sends its traces to the collector."""
    async with proxy(upstream_url=upstream.url, otlp_endpoint=traces.url) as running:
        yield running


def of(spans: list[Span]) -> tuple[Span, list[Span]]:
    """The request's span, and those of its attempts in their order."""
    server, *clients = spans
    assert [server.kind, *{span.kind for span in clients}] == ["SERVER", "CLIENT"]
    assert {span.trace_id for span in spans} == {server.trace_id}
    assert {span.parent_id for span in clients} == {server.span_id}
    resends = "http.request.resend_count"
    return server, sorted(clients, key=lambda span: int(span.attributes.get(resends, 0)))


async def post(running: Proxy, headers: dict[str, str], **fields: Any) -> int:
    """Post a chat request with headers; returns the status."""
    async with running.http.post(
        running.url + CHAT, json={**BODY, **fields}, headers=headers
    ) as response:
        await response.read()
        return response.status


@needs_packages
async def test_spans_of_a_request(traced: Proxy, traces: Collector, upstream: StandIn) -> None:
    """The request and the attempt each have a span, with what the conventions name."""
    assert (await traced.chat())[0] == 200
    server, (client,) = of(await traces.all_of(2))
    port = int(upstream.url.rpartition(":")[2])
    generation = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
    }
    assert (server.name, server.parent_id, server.is_error) == (f"POST {CHAT}", "", False)
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.path": CHAT,
        "server.address": "127.0.0.1",
        "server.port": traced.port,
        **generation,
    }
    assert (client.name, client.is_error) == ("chat tiny", False)
    assert client.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "gen_ai.provider.name": "openai",
        "server.address": "127.0.0.1",
        "server.port": port,
        "network.peer.address": "127.0.0.1",
        "openai_proxy.upstream": f"127.0.0.1:{port}",
        **generation,
    }
    assert 0 < client.seconds <= server.seconds < 5
    assert traces.resource["service.name"] == "openai-proxy"


@needs_packages
async def test_the_upstream_s_name_and_dialect(traces: Collector, upstream: StandIn) -> None:
    """A span names an upstream as the configuration does, and tells how it speaks."""
    upstream.respond = answered_json({"predictions": ["hi"]})
    upstreams = [{"name": "gpu", "url": upstream.url, "dialect": "kserve-v1"}]
    async with proxy(upstreams=upstreams, otlp_endpoint=traces.url) as running:
        async with running.http.post(
            f"{running.url}/v1/completions", json={"model": "tiny", "prompt": "hi"}
        ) as response:
            assert response.status == 200
        _, (client,) = of(await traces.all_of(2))
    assert client.attributes["openai_proxy.upstream"] == "gpu"
    assert client.attributes["gen_ai.provider.name"] == "kserve-v1"


@needs_packages
async def test_the_trace_goes_on(traced: Proxy, traces: Collector, upstream: StandIn) -> None:
    """The caller's trace goes on below the request's span, and upstream below the attempt's."""
    headers = {"traceparent": CALLER, "tracestate": "vendor=1"}
    assert await post(traced, headers) == 200
    server, (client,) = of(await traces.all_of(2))
    _, trace_id, parent_id, _ = CALLER.split("-")
    assert (server.trace_id, server.parent_id) == (trace_id, parent_id)
    (asked,) = upstream.requests
    assert asked.headers.getall("traceparent") == [f"00-{trace_id}-{client.span_id}-01"]
    assert asked.headers.getall("tracestate") == ["vendor=1"]


async def test_without_tracing_the_caller_s_trace_passes(proxy: Proxy, upstream: StandIn) -> None:
    """An upstream gets the caller's trace as it is, where the proxy has none of its own."""
    headers = {"traceparent": CALLER, "tracestate": "vendor=1"}
    assert await post(proxy, headers) == 200
    (asked,) = upstream.requests
    assert {name: asked.headers.getall(name) for name in headers} == {
        name: [value] for name, value in headers.items()
    }


@needs_packages
async def test_a_caller_decides_what_is_sampled(
    traced: Proxy, traces: Collector, upstream: StandIn
) -> None:
    """What the caller does not sample is not sent, and its upstream learns of that."""
    assert await post(traced, {"traceparent": UNSAMPLED}) == 200
    assert await post(traced, {}) == 200
    await traces.all_of(2)
    assert upstream.requests[0].headers["traceparent"].endswith("-00")
    assert upstream.requests[0].headers["traceparent"].split("-")[1] == CALLER.split("-")[1]


@needs_packages
async def test_a_sample(traces: Collector, upstream: StandIn) -> None:
    """With a share of 0, only what a caller samples is sent."""
    settings = {"otlp_endpoint": traces.url, "trace_sample": 0}
    async with proxy(upstream_url=upstream.url, **settings) as running:
        assert await post(running, {}) == 200
        assert await post(running, {"traceparent": CALLER}) == 200
        await traces.all_of(2)
    assert {span.trace_id for span in traces.spans} == {CALLER.split("-")[1]}


@needs_packages
async def test_a_stream(traced: Proxy, traces: Collector, upstream: StandIn) -> None:
    """A stream's spans have its usage and the time to its first chunk."""
    upstream.respond = streamed(chunk("a"), chunk("b"), USAGE_CHUNK, DONE)
    await traced.stream()
    server, (client,) = of(await traces.all_of(2))
    for span in (server, client):
        assert span.attributes["gen_ai.request.stream"] is True
        assert span.attributes["gen_ai.usage.input_tokens"] == 7
        assert span.attributes["gen_ai.usage.output_tokens"] == 3
        assert 0 < span.attributes["gen_ai.response.time_to_first_chunk"] <= span.seconds + 0.05


@needs_packages
async def test_an_attempt_that_fails(traces: Collector, pods: Pods) -> None:  # noqa: F811
    """Each attempt has its span: the first with its error, the second with the answer."""
    first = await pods.start("127.0.0.1")
    first.respond = reset
    url = f"http://pods:{pods.port}"
    async with proxy(upstream_url=url, otlp_endpoint=traces.url) as running:
        await pods.start("127.0.0.2")
        while not first.requests:
            traces.spans.clear()
            assert (await running.chat())[0] == 200
            await traces.all_of(3 if first.requests else 2)
    server, (failed, answered) = of(await traces.all_of(3))
    assert failed.is_error
    assert failed.attributes["error.type"] == "upstream_connection_failed"
    assert failed.attributes["network.peer.address"] == "127.0.0.1"
    assert not answered.is_error
    assert answered.attributes["network.peer.address"] == "127.0.0.2"
    assert answered.attributes["server.address"] == "pods"
    assert server.attributes["http.request.resend_count"] == 1
    assert not server.is_error


@needs_packages
@pytest.mark.parametrize(
    ("status", "fields", "code", "is_error"),
    [
        (500, {}, "upstream_error", True),
        (400, {}, "other", False),
        (200, {"n": -1}, "integer_below_min_value", False),
    ],
)
async def test_errors(
    traced: Proxy,
    traces: Collector,
    upstream: StandIn,
    status: int,
    fields: dict[str, Any],
    code: str,
    is_error: bool,
) -> None:
    """Spans tell an error's code; a client's own mistake is no failure of the proxy."""
    error = {"message": f"{SECRET}-echo", "code": f"{SECRET} echo"}
    upstream.respond = answered_json({"error": error}, status)
    messages = [{"role": "user", "content": f"{SECRET}-prompt"}]
    headers = {"authorization": f"Bearer {SECRET}", "tracestate": SECRET, "traceparent": SECRET}
    assert await post(traced, headers, messages=messages, **fields) >= 400
    server, *clients = await traces.all_of(1 if fields else 2)
    assert (server.attributes["error.type"], server.is_error) == (code, is_error)
    assert all(client.is_error for client in clients)
    assert not any(SECRET.encode() in body for body in traces.bodies)


@needs_packages
async def test_a_broken_stream_is_an_error(
    traced: Proxy, traces: Collector, upstream: StandIn
) -> None:
    """A stream that breaks has status 200, and its spans are failures."""
    upstream.respond = streamed(chunk("a"))
    await traced.stream()
    for span in await traces.all_of(2):
        assert (span.is_error, span.attributes["error.type"]) == (True, "upstream_stream_broken")
        assert span.attributes["http.response.status_code"] == 200


@needs_packages
async def test_probes_have_no_spans(traced: Proxy, traces: Collector) -> None:
    """Health checks and scrapes are not traced."""
    for path in ("/health", "/v1/health/ready", "/metrics"):
        async with traced.http.get(traced.url + path) as response:
            assert response.status == 200
    assert (await traced.get("/v1/models"))[0] == 200
    (span,) = await traces.all_of(1)
    assert (span.name, span.attributes["http.route"]) == ("GET /v1/models", "/v1/models")


@needs_packages
async def test_log_lines_have_the_trace_s_id(traced: Proxy, traces: Collector) -> None:
    """From a log line one finds the trace, and back."""
    with logged() as lines:
        assert (await traced.chat())[0] == 200
        server, _ = of(await traces.all_of(2))
        (line,) = lines.events("request")
    assert (line["trace_id"], line["span_id"]) == (server.trace_id, server.span_id)


@needs_packages
async def test_a_collector_that_is_away_hurts_nobody(traces: Collector, upstream: StandIn) -> None:
    """Requests are served as ever; one line says that traces are lost, one that all is well."""
    traces.status = 400
    with logged() as lines:
        async with proxy(upstream_url=upstream.url, otlp_endpoint=traces.url) as running:
            for count in (2, 4, 6):
                assert (await running.chat())[0] == 200
                await until(lambda: len(traces.refused) == count)  # noqa: B023  # awaited here
            traces.status = 200
            assert (await running.chat())[0] == 200
            await traces.all_of(2)
        assert len(lines.events("traces_not_sent")) == 1
        (again,) = lines.events("traces_sent_again")
        assert again["lost_spans"] == 6
        assert not [line for line in lines.events() if line["logger"].startswith("opentelemetry")]


@needs_packages
@pytest.mark.parametrize("is_silent", [True, False])
async def test_the_end_does_not_wait_for_a_collector(
    tmp_path: Path, traces: Collector, upstream: StandIn, is_silent: bool
) -> None:
    """A collector that never answers, or is not there, holds up the end for a few seconds."""
    traces.status = None
    endpoint = traces.url if is_silent else f"http://127.0.0.1:{refused_port()}"
    flags = ("--upstream-url", upstream.url, "--otlp-endpoint", endpoint)
    async with process(tmp_path, *flags, PYTHONPATH=_path_with_packages()) as running:
        assert await _chat(running.url) == 200
        asked_at = time.monotonic()
        assert await running.end() == 0
        assert time.monotonic() - asked_at < 5


@needs_packages
async def test_the_last_spans_are_sent(
    tmp_path: Path, traces: Collector, upstream: StandIn
) -> None:
    """What a process has traced just before its end is not lost; the settings may be standard."""
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=abc",
        "OTEL_SERVICE_NAME": "mine",
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
        "PYTHONPATH": _path_with_packages(),
    }
    async with process(tmp_path, "--upstream-url", upstream.url, **env) as running:
        assert await _chat(running.url) == 200
        assert await running.end() == 0
    assert len(traces.spans) == 2
    assert traces.resource["service.name"] == "mine"
    assert traces.headers[0]["api-key"] == "abc"


@needs_packages
async def test_a_failure_of_the_tracer_hurts_nobody(
    traced: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the tracer is logged once, and requests are served."""
    from openai_proxy import tracing as under_test

    def fail(*_: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(under_test, "_generation", fail)
    with logged() as lines:
        for _ in range(3):
            assert (await traced.chat())[0] == 200
        await until(lambda: bool(lines.events("tracing_failed")))
        assert len(lines.events("tracing_failed")) == 1
    assert SECRET not in lines.getvalue()


async def test_nothing_is_imported_unless_it_is_configured(upstream: StandIn) -> None:
    """A proxy without a collector imports nothing that sends traces, also not when it serves."""
    code = (
        "import asyncio, sys\n"
        "from tests.proxy.harness import proxy\n"
        "async def main():\n"
        f"    async with proxy(upstream_url={upstream.url!r}) as running:\n"
        "        assert (await running.chat())[0] == 200\n"
        "asyncio.run(main())\n"
        "print(*sys.modules)\n"
    )
    path = os.pathsep.join((_path_with_packages(), str(ROOT)))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=environment(PYTHONPATH=path, PYTHONWARNINGS="default"),
    )  # fmt: skip
    out, _ = await child.communicate()
    modules = set(out.decode().splitlines()[-1].split())
    assert "openai_proxy.api.openai" in modules
    assert not {
        name
        for name in modules
        if re.match(r"opentelemetry\.(sdk|exporter|proto)|google\.protobuf", name)
    }
    assert "openai_proxy.tracing" not in modules


async def test_missing_packages_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages are missing, one sentence says what to install."""
    monkeypatch.setattr(tracing, "_is_there", lambda _: False)
    with pytest.raises(ConfigError, match=r"--otlp-endpoint.*kserve-llamacpp-proxy\[tracing\]"):
        load({**URL, "otlp_endpoint": "http://collector:4318"})
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*\[tracing\]"):
        load(URL)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert load(URL).otlp_endpoint is None


def test_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's own variable names the collector, unless ours does; gRPC is refused."""
    monkeypatch.setattr(tracing, "_is_there", lambda _: True)
    assert load(URL).otlp_endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://theirs:4318/")
    assert load(URL).otlp_endpoint == "http://theirs:4318"
    assert load({**URL, "otlp_endpoint": "http://ours:4318"}).otlp_endpoint == "http://ours:4318"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
        load(URL)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        load(URL)


def test_a_password_in_the_endpoint_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Secrets have their place in OTEL_EXPORTER_OTLP_HEADERS."""
    monkeypatch.setattr(tracing, "_is_there", lambda _: True)
    with pytest.raises(ConfigError, match="password") as raised:
        load({**URL, "otlp_endpoint": f"http://me:{SECRET}@h:4318"})
    assert SECRET not in str(raised.value)


async def _chat(url: str) -> int:
    async with ClientSession() as http, http.post(url + CHAT, json=BODY) as response:
        await response.read()
        return response.status


def _path_with_packages() -> str:
    """The search path of a proxy process, with where OpenTelemetry is installed."""
    found = [place for place in sys.path if (Path(place) / "opentelemetry" / "sdk").is_dir()]
    return os.pathsep.join((str(STANDIN), PYTHONPATH, *found))
