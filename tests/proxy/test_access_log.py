"""One line for each request, with what is needed to find and to explain it, and no secrets."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from hypothesis import given
from hypothesis import strategies as st

from openai_proxy.access_log import AccessLog, fields_of
from openai_proxy.exchange import Exchange, loggable, loggable_code, usage_in
from tests.proxy import harness
from tests.proxy.harness import (
    CHAT,
    COMPLETION,
    DONE,
    MESSAGES,
    Proxy,
    Respond,
    StandIn,
    answered,
    answered_json,
    chunk,
    streamed,
    until,
)
from tests.proxy.log_lines import Lines, logged
from tests.proxy.processes import process

USAGE_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny",'
    b'"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
)


def finished(**fields: Any) -> Exchange:
    """A request that is over."""
    exchange = Exchange("r1", "POST", CHAT, 1.0, route=CHAT, status=200)
    exchange.finished_at = 3.0
    for name, value in fields.items():
        setattr(exchange, name, value)
    return exchange


async def the_line(lines: Lines) -> dict[str, Any]:
    """The only line of the access log; it comes when the client has its answer already."""
    await until(lambda: bool(lines.events("request")))
    (line,) = lines.events("request")
    return line


async def test_a_whole_answer(proxy: Proxy, upstream: StandIn) -> None:
    """The line tells model, upstream, status, time and tokens."""
    with logged() as lines:
        assert (await proxy.chat())[0] == 200
        line = await the_line(lines)
    assert line.pop("duration_seconds") > 0
    for name in ("timestamp", "request_id"):
        assert line.pop(name)
    assert line == {
        "level": "info",
        "event": "request",
        "logger": "openai_proxy.access",
        "method": "POST",
        "path": CHAT,
        "route": CHAT,
        "status": 200,
        "model": "tiny",
        "upstream": upstream.url.removeprefix("http://"),
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }


async def test_an_upstream_with_a_name(upstream: StandIn) -> None:
    """An upstream that the configuration names is called by that name."""
    upstreams = [{"name": "gpu", "url": upstream.url}]
    async with harness.proxy(upstreams=upstreams) as proxy:
        with logged() as lines:
            assert (await proxy.chat())[0] == 200
            line = await the_line(lines)
    assert line["upstream"] == "gpu"


async def test_a_stream_with_usage(proxy: Proxy, upstream: StandIn) -> None:
    """The tokens of a stream come from its usage chunk; the time to the first byte is told."""
    upstream.respond = streamed(chunk("a"), chunk("b"), USAGE_CHUNK + DONE)
    with logged() as lines:
        await proxy.stream(stream_options={"include_usage": True})
        line = await the_line(lines)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)
    assert line["stream"] is True
    assert 0 < line["ttft_seconds"] <= line["duration_seconds"]


async def test_a_stream_without_usage(proxy: Proxy, upstream: StandIn) -> None:
    """Tokens that nobody tells are not made up."""
    upstream.respond = streamed(chunk("a"), DONE)
    with logged() as lines:
        await proxy.stream()
        line = await the_line(lines)
    assert not {"prompt_tokens", "completion_tokens"} & set(line)


async def test_an_error(proxy: Proxy, upstream: StandIn) -> None:
    """An error's code is told; a failing upstream makes a warning of it."""
    upstream.respond = answered_json({"detail": "no"}, 500)
    with logged(log_level="warning") as lines:
        assert (await proxy.chat())[0] == 502
        line = await the_line(lines)
    assert (line["level"], line["status"]) == ("warning", 502)
    assert line["error_code"] == "upstream_error"
    assert line["upstream"]


async def test_a_client_that_left(proxy: Proxy, upstream: StandIn) -> None:
    """A client that leaves in the middle of its stream is told as gone."""
    upstream.respond = harness.streamed(*[chunk("x")] * 100_000)
    with logged() as lines:
        async with proxy.http.post(
            proxy.url + CHAT, json={"messages": MESSAGES, "stream": True}
        ) as response:
            await response.content.readuntil(b"\n\n")
            response.close()
        line = await the_line(lines)
    assert line["client_gone"] is True


async def test_a_route_with_a_parameter(proxy: Proxy) -> None:
    """The route is told as the server knows it, beside the path as it came."""
    with logged() as lines:
        await proxy.get("/v1/models/tiny")
        line = await the_line(lines)
    assert (line["path"], line["route"]) == ("/v1/models/tiny", "/v1/models/{model:path}")


async def test_probes_are_quiet(proxy: Proxy) -> None:
    """Requests of probes and scrapers are told at debug level only."""
    with logged() as lines:
        await proxy.get("/health/live")
        await proxy.chat()
        assert (await the_line(lines))["path"] == CHAT
    with logged(log_level="debug") as lines:
        await proxy.get("/health/live")
        assert (await the_line(lines))["level"] == "debug"


def test_attempts() -> None:
    """How often an upstream was asked is told where that was more than once."""
    assert fields_of(finished(num_attempts=2))["attempts"] == 2
    assert "attempts" not in fields_of(finished(num_attempts=1))


def told(log: AccessLog, *exchanges: Exchange) -> int:
    """How many of these requests get a line."""
    lines: list[str] = []
    log._write = lambda level, *_: lines.append(level)
    for exchange in exchanges:
        log.request_finished(exchange)
    return len(lines)


BAD = (
    {"status": 404},
    {"status": 502},
    {"error_code": "upstream_stream_broken"},
    {"is_client_gone": True},
)


def test_which_requests_are_told() -> None:
    """`errors` leaves out the good ones, `off` all."""
    bad = [finished(**fields) for fields in BAD]
    nobody: frozenset[str] = frozenset()
    assert told(AccessLog(nobody), finished(), *bad) == 5
    assert told(AccessLog(nobody, "errors"), finished(), *bad) == 4
    assert told(AccessLog(nobody, "off"), finished(), *bad) == 0


def test_sample() -> None:
    """A share of the good requests is told, the same for the same id; all others are."""
    nobody: frozenset[str] = frozenset()
    good = [finished(request_id=f"req_{number}") for number in range(2000)]
    tenth = AccessLog(nobody, sample=0.1)
    assert 120 < told(tenth, *good) < 280
    assert told(tenth, *good) == told(AccessLog(nobody, sample=0.1), *good)
    assert told(tenth, *[finished(**fields) for fields in BAD]) == 4
    assert told(AccessLog(nobody, sample=0), *good) == 0
    assert told(AccessLog(nobody, sample=1), *good) == 2000


def test_loggable() -> None:
    """A client's text cannot break a log line or a terminal."""
    assert loggable("a\nb\x1b[2J\u202e") == "a\\nb\\x1b[2J\\u202e"
    assert len(loggable("x" * 1000)) == 128


@pytest.mark.parametrize(
    ("code", "shown"),
    [("context_length_exceeded", "context_length_exceeded"), ("400", "400")]
    + [(code, "other") for code in ("my prompt", "", "a\n", "x" * 65, "-")],
)
def test_loggable_code(code: str, shown: str) -> None:
    """An upstream's code is told where it is one: nothing else gets into the log that way."""
    assert loggable_code(code) == shown


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (json.dumps(COMPLETION).encode(), (3, 2)),
        (b'{"usage": {"input_tokens": 4,\n "output_tokens":5}, "output": []}', (4, 5)),
        (b'{"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}', (8, None)),
        (b'{"usage": null}', None),
        (b'{"usage": {"total_tokens": 8}}', None),
        (b'{"content": "usage"}', None),
        (b'data: {"usage":null}\n\n' + USAGE_CHUNK + b'data: {"usage":null}\n\n', (7, 3)),
        (USAGE_CHUNK.replace(b"7", b"1") + USAGE_CHUNK, (7, 3)),
        (b'{"usage": {"prompt_tokens_details": {"x": 1}, "prompt_tokens": 2}}', (2, None)),
        (b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}", None),
        (b'{"usage": {"prompt_tokens": -1, "completion_tokens": 1.5}}', None),
        (b'{"usage": {"prompt_tokens": 6}, "data": "' + b"x" * 100_000 + b'"}', (6, None)),
        (b'{"data": "' + b"x" * 100_000 + b'", "usage": {"prompt_tokens": 6}}', (6, None)),
    ],
)
def test_usage_in(body: bytes, tokens: tuple[int | None, int | None] | None) -> None:
    """Tokens are found where an answer or a stream has them, whatever their names and place."""
    assert usage_in(body) == tokens


@given(st.text() | st.just('"usage": {"prompt_tokens": 999}') | st.just('\\"usage": {'))
def test_no_text_is_taken_for_usage(text: str) -> None:
    """Whatever a model writes, only the answer's own usage counts."""
    body = {"choices": [{"message": {"content": text}}]}
    assert usage_in(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")) is None
    body["usage"] = {"prompt_tokens": 5, "completion_tokens": 6}  # type: ignore[assignment]
    assert usage_in(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")) == (5, 6)


def test_looking_for_usage_is_cheap() -> None:
    """A body of many megabytes without it, or full of it, is looked at in no time."""
    for body in (b"x" * 50_000_000, b'"usage":null,' * 1_000_000, b'"usage":{' * 1_000_000):
        began = time.thread_time()  # not what others take of the machine
        usage_in(body)
        assert time.thread_time() - began < 0.2


SECRET = "s3cr3t"  # noqa: S105  # a mark to look for
ECHOES: list[Respond] = [
    answered_json({**COMPLETION, "choices": [{"message": {"content": f"{SECRET}-answer"}}]}),
    streamed(chunk(f"{SECRET}-answer"), DONE),
    streamed(chunk("a"), b'data: {"error": {"message": "' + SECRET.encode() + b'-echo"}}\n\n'),
    streamed(chunk("a"), f"{SECRET} is no event\n\n".encode()),
    answered_json({"error": {"message": f"{SECRET}-echo", "code": f"{SECRET} echo"}}, 400),
    answered_json({"error": {"message": f"{SECRET}-echo", "code": None}}, 500),
    answered_json({"detail": [{"loc": ["body", SECRET], "msg": f"{SECRET}-echo"}]}, 422),
    answered(503, f"<html>{SECRET}-echo</html>", "text/html"),
    answered(200, f"{SECRET}-echo", "application/json"),
    answered(200, f"{SECRET}-echo", "text/plain", **{"content-encoding": "gzip"}),
]
PROMPT = [{"role": "user", "content": f"{SECRET}-prompt"}]
BODIES: list[bytes] = [
    json.dumps({"model": "tiny", "messages": PROMPT}).encode(),
    json.dumps({"model": "tiny", "messages": PROMPT, "stream": True}).encode(),
    json.dumps({"messages": f"{SECRET}-prompt"}).encode(),
    json.dumps({"messages": PROMPT, "temperature": f"{SECRET}"}).encode(),
    json.dumps({"messages": PROMPT, SECRET: {}, "n": -1}).encode(),
    f'{{"messages": [{{"content": "{SECRET}-prompt'.encode(),
    f"{SECRET}-prompt".encode() + b"\xff\x00",
    b'{"messages": [], "x": "' + SECRET.encode() * 100_000 + b'"}',
]
HEADERS = {
    "authorization": f"Bearer {SECRET}-key",
    "x-api-key": f"{SECRET}-key",
    "cookie": f"session={SECRET}",
    "x-request-id": f"{SECRET} is no id",
    "traceparent": f"{SECRET}",
    "x-custom": f"{SECRET}",
}


async def test_neither_prompts_nor_answers_nor_keys_are_logged(
    tmp_path: Path, upstream: StandIn
) -> None:
    """Whatever goes wrong, and at debug level: no text of a request or answer gets into any log."""
    path = tmp_path / "proxy.json"
    flags = ("--upstream-url", upstream.url, "--log-level", "DEBUG", "--log-format", "columns")
    flags = (*flags, "--log-file", str(path), "--max-body-bytes", "500000")
    num_requests = 0
    async with process(tmp_path, *flags) as proxy, ClientSession() as http:
        for respond in ECHOES:
            upstream.respond = respond
            for body in BODIES:
                num_requests += 1
                url = f"{proxy.url}{CHAT}?key={SECRET}"
                async with http.post(url, data=body, headers=HEADERS) as response:
                    await response.read()
        assert await proxy.end() == 0
        console = proxy.log.read_text()
    assert console.count("| request method=POST") == num_requests
    assert path.read_text().count('"method":"POST"') == num_requests
    assert any(SECRET.encode() in body for body in upstream.bodies)
    assert SECRET not in console
    assert SECRET not in path.read_text()


async def test_a_bug_does_not_log_them_either(proxy: Proxy) -> None:
    """An exception that nobody expected may have a prompt in its text: that is not told."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(SECRET)

    proxy.lifecycle._service._router.use(Broken())  # type: ignore[arg-type]
    with logged(log_level="debug") as lines:
        assert (await proxy.chat(messages=PROMPT))[0] == 500
        line = await the_line(lines)
        assert lines.events("request_failed")
    assert line["error_code"] == "internal_error"
    assert SECRET not in lines.getvalue()
