"""The small parts: leash, probe, output, backoff, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from openai_protocol.errors import BadGateway, DeadlineExceeded, Unavailable
from openai_proxy.backends.base import SupervisorOptions, backoff
from openai_proxy.backends.llamacpp import LlamaCpp
from openai_proxy.backends.output import MAX_LINE_BYTES, Output
from openai_proxy.dialects.openai import OpenAIDialect
from openai_proxy.exchange import ClientGoneError, Exchange
from openai_proxy.metrics import Metrics
from openai_proxy.routing import probe as probing
from openai_proxy.routing.endpoints import Endpoint
from openai_proxy.routing.probe import Probe, Readiness
from openai_proxy.running import Receive, Running


async def leashed(
    running: Running, receive: Receive | None = None, timeout_seconds: float = 60
) -> None:
    """A request that would never end by itself."""
    async with running.leash(timeout_seconds) as leash:
        if receive is not None:
            leash.watch({}, receive)
        await asyncio.Event().wait()


async def test_leash_raises_the_reason_instead_of_the_cancellation() -> None:
    """An interrupted request sees the reason, and can go on awaiting afterwards."""
    running = Running()
    asyncio.get_running_loop().call_later(
        0.01, running.interrupt_all, lambda: Unavailable("enough")
    )
    with pytest.raises(Unavailable):
        await leashed(running)
    await asyncio.sleep(0)
    assert len(running) == 0
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_leash_lets_a_real_cancellation_through() -> None:
    """A task that is cancelled from outside stays cancelled, also if it is interrupted, too."""
    running = Running()

    task = asyncio.create_task(leashed(running))
    await asyncio.sleep(0)
    running.interrupt_all(lambda: Unavailable("enough"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_leash_deadline() -> None:
    """The deadline interrupts with 504."""
    with pytest.raises(DeadlineExceeded):
        await leashed(Running(), timeout_seconds=0.01)


async def test_leash_watch_and_unwatch() -> None:
    """A disconnect interrupts while the client is watched, and not once it is let go."""
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    gone.set()
    with pytest.raises(ClientGoneError):
        await leashed(Running(), receive)
    async with Running().leash(60) as leash:
        leash.watch({}, receive)
        leash.unwatch()
        await asyncio.sleep(0.01)
    gone.clear()
    async with Running().leash(60) as leash:
        leash.watch({}, receive)
        await asyncio.sleep(0)
    gone.set()
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1


class Upstreams:
    """Looks that go as scripted."""

    def __init__(self, *looks: Readiness) -> None:
        self.looks = iter(looks)

    async def look_at(self, _: Any) -> Readiness:
        """The next look."""
        return next(self.looks)


GOOD = Readiness(is_ready=True, models=("m",), reason="")
BAD = Readiness(reason="HTTP 503")


async def test_probe_forgives_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """One failed look changes nothing, two in a row do, one good look is enough to be ready."""
    monkeypatch.setattr(probing, "look_at", Upstreams(BAD, GOOD, BAD, GOOD, BAD, BAD, GOOD).look_at)
    changes: list[bool] = []
    probe = Probe(object, 2, on_change=lambda now: changes.append(now.is_ready))  # type: ignore[arg-type, return-value]
    seen = [(await probe.look()).is_ready for _ in range(7)]
    assert seen == [False, True, True, True, True, False, True]
    assert changes == [False, True, False, True]


async def test_probe_without_an_upstream_is_not_ready_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the upstream is taken away, no second look is needed."""
    monkeypatch.setattr(probing, "look_at", Upstreams(GOOD).look_at)
    upstreams: Iterator[Any] = iter([object(), None])
    probe = Probe(lambda: next(upstreams), 2)
    assert (await probe.look()).is_ready
    assert not (await probe.look()).is_ready


async def test_probe_looks_more_often_while_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval is a quarter while the upstream is not ready."""
    monkeypatch.setattr(probing, "look_at", Upstreams(BAD, GOOD, GOOD).look_at)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await Probe(object, 2, sleep).run()  # type: ignore[arg-type, return-value]
    assert waits == [0.5, 2, 2]


async def test_look_at_upstreams() -> None:
    """No list of models is ready if it answers; an empty list is not; nor is an error."""

    class Fake:
        dialect = OpenAIDialect()

        def __init__(self, status: int, body: bytes) -> None:
            self.head = type("Head", (), {"status": status})
            self._body = body

        async def choose(self, *_: Any) -> Endpoint:
            return Endpoint("here")

        def get(self, *_: Any) -> Fake:
            return self

        async def __aenter__(self) -> Fake:
            if self.head.status == 0:
                raise BadGateway("no")
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def body(self) -> bytes:
            return self._body

    cases = [
        (404, b"", True),
        (503, b"", False),
        (0, b"", False),
        (200, b'{"data": [{"id": "m"}]}', True),
        (200, b'{"data": []}', False),
        (200, b"<html>", False),
    ]
    for status, body, expected in cases:
        found = await probing.look_at(Fake(status, body))  # type: ignore[arg-type]
        assert found.is_ready is expected, (status, body)
        assert found.is_ready or found.reason


def test_output_lines() -> None:
    """JSON lines keep level and fields, others are info; lines may come in pieces."""
    lines: list[tuple[str, str, dict[str, Any]]] = []
    output = Output(lambda *line: lines.append(line))
    output.feed(b'{"event": "hi", "level": "warn')
    output.feed(b'ing", "n": 1}\nplain \x1b[31mred\n\n{"level": "odd", "message": "m"}\nlast')
    output.end()
    assert lines == [
        ("warning", "hi", {"n": 1}),
        ("info", "plain red", {}),
        ("info", "m", {}),
        ("info", "last", {}),
    ]
    assert output.last_message == "last"
    output.feed(b'{"event": "startup_failed", "error": "no such file"}\n')
    assert output.last_message == "no such file"


def test_output_is_bounded() -> None:
    """A line without an end is cut off at the limit, and the next line is whole again."""
    lines: list[str] = []
    output = Output(lambda _, text, __: lines.append(text))
    for _ in range(100):
        output.feed(b"x" * 1000)
    output.feed(b"\nnext\n")
    assert [len(line) for line in lines] == [MAX_LINE_BYTES, 4]


def test_backoff() -> None:
    """The wait doubles with each failure, up to the cap."""
    options = SupervisorOptions(backoff_seconds=1, backoff_cap_seconds=10)
    assert [backoff(failures, options) for failures in (1, 2, 3, 4, 5, 1000)] == [
        1,
        2,
        4,
        8,
        10,
        10,
    ]


def test_llamacpp_command() -> None:
    """The predictor gets its address, gRPC off, no drain delay, and our arguments last."""
    backend = LlamaCpp("python", "tiny", "/m/tiny.gguf", 30, ("--n_ctx", "512"))
    assert backend.command("127.0.0.1", 8081) == [
        *("python", "-m", "kserve_llamacpp", "--model_name", "tiny", "--model_dir", "/m/tiny.gguf"),
        *("--http_host", "127.0.0.1", "--http_port", "8081", "--enable_grpc", "false"),
        *("--drain_delay_seconds", "0", "--grace_seconds", "30", "--log_format", "json"),
        *("--log_level", "info"),
        *("--n_ctx", "512"),
    ]


def test_metrics_labels_are_bounded() -> None:
    """Unknown paths and models share one label each, however many there are."""
    metrics = Metrics(lambda model: model == "tiny")
    for number in range(50):
        exchange = Exchange("id", "POST", f"/{number}", 0.0, model=f"m{number}", status=404)
        exchange.finished_at = 1.0
        metrics.request_started(exchange)
        metrics.request_finished(exchange)
    stream = Exchange("id", "POST", "/x", 0.0, "/x", "tiny", 200, True, 0.25, 1.0)
    metrics.request_started(stream)
    metrics.request_finished(stream)
    metrics.upstream_failed("upstream_error")
    text = metrics.render(is_ready=True).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    requests = families["openai_proxy_requests"].samples
    assert {(s.labels["path"], s.labels["model"], s.value) for s in requests} == {
        ("other", "other", 50),
        ("/x", "tiny", 1),
    }
    ttft = families["openai_proxy_time_to_first_token_seconds"].samples
    assert [s.value for s in ttft if s.name.endswith("_sum")] == [0.25]
    assert families["openai_proxy_requests_in_flight"].samples[0].value == 0
    assert families["openai_proxy_ready"].samples[0].value == 1
