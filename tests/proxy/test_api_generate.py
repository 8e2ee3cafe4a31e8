"""`/api/generate` and `/api/generate/stream`, as Semantic Explorer's LLM Inference API has them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.sse import data_of, split_events
from openai_proxy.api.generate import finish_reason, num_tokens, text_event, text_events
from tests.proxy import harness
from tests.proxy.harness import (
    DONE,
    Proxy,
    StandIn,
    answered,
    answered_json,
    start_stream,
    streamed,
    until,
)

GENERATE = "/api/generate"
STREAM = "/api/generate/stream"
# the document's own request
ASKED = {
    "model": "mistralai/Mistral-7B-Instruct-v0.2",
    "prompt": "Explain quantum computing in simple terms:",
    "temperature": 0.7,
    "max_tokens": 200,
}


def completion(text: str, reason: str = "length", **more: Any) -> dict[str, Any]:
    """A text completion, as an upstream answers it."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": ASKED["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": 9, "completion_tokens": 156, "total_tokens": 165},
    } | more


def piece(text: str, reason: str | None = None) -> bytes:
    """One event of a stream of text."""
    choice = {"index": 0, "text": text, "finish_reason": reason}
    value = {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def post(proxy: Proxy, path: str, body: Any) -> tuple[int, Any]:
    """Post a body; returns status and decoded answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with proxy.http.post(proxy.url + path, data=data) as response:
        return response.status, await response.json()


async def stream(proxy: Proxy, body: dict[str, Any], path: str = STREAM) -> bytes:
    """Post a request for a stream; returns its bytes."""
    async with proxy.http.post(proxy.url + path, json=body) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        return await response.read()


@pytest.mark.parametrize("path", [GENERATE, f"/v1{GENERATE}"])
async def test_documented_answer(proxy: Proxy, upstream: StandIn, path: str) -> None:
    """The answer has the document's four fields, and no others."""
    upstream.respond = answered_json(completion("Quantum computing is..."))
    assert await post(proxy, path, ASKED) == (
        200,
        {
            "text": "Quantum computing is...",
            "model": "mistralai/Mistral-7B-Instruct-v0.2",
            "tokens_generated": 156,
            "finish_reason": "length",
        },
    )
    assert upstream.requests[-1].path == "/v1/completions"
    assert json.loads(upstream.bodies[-1]) == ASKED


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"finish_reason": "stop"}, "eos"),
        ({"finish_reason": "stop", "stop_reason": None}, "eos"),
        ({"finish_reason": "stop", "stop_reason": "\n"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({}, "eos"),
    ],
)
def test_finish_reasons(choice: dict[str, Any], reason: str) -> None:
    """A natural end is `eos`; a stop string's is `stop` where the upstream tells it apart."""
    assert finish_reason(choice) == reason


@pytest.mark.parametrize(
    ("usage", "text", "number"),
    [
        ({"completion_tokens": 7}, "x" * 100, 7),
        ({"completion_tokens": 0}, "x" * 100, 25),
        (None, "x" * 101, 26),
        ({}, "", 0),
    ],
)
def test_tokens_are_counted_or_estimated(usage: object, text: str, number: int) -> None:
    """The upstream's count is told; where it has none, four bytes make a token."""
    assert num_tokens({"usage": usage}, text) == number


async def test_documented_stream(proxy: Proxy, upstream: StandIn) -> None:
    """A stream is text, an event for each piece, and ends with the connection."""
    upstream.respond = streamed(piece("1"), piece(", 2"), piece(", 3"), piece("", "stop"), DONE)
    body = {"model": "m", "prompt": "Count from 1 to 10:", "max_tokens": 50}
    assert await stream(proxy, body) == b"data: 1\n\ndata: , 2\n\ndata: , 3\n\n"
    assert json.loads(upstream.bodies[-1]) == body | {"stream": True}


async def test_stream_where_it_is_asked_for(proxy: Proxy, upstream: StandIn) -> None:
    """`stream` is honoured by the plain endpoint, too, and under /v1."""
    upstream.respond = streamed(piece("a"), DONE)
    assert await stream(proxy, {"prompt": "x", "stream": True}, f"/v1{GENERATE}") == b"data: a\n\n"


def test_lines_of_text_are_lines_of_data() -> None:
    """Newlines split an event's data, as the standard wants it."""
    assert text_event("a\nb\r\n c\r") == b"data: a\ndata: b\ndata:  c\ndata: \n\n"


@given(st.text(min_size=1))
def test_text_survives(text: str) -> None:
    """Whoever reads the events by the standard has the text again, with newlines made alike."""
    text = text.encode(errors="replace").decode()
    read = b"".join(data_of(raw) or b"" for raw in split_events(text_event(text)))
    assert read.decode() == text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize(
    "chunk", [{}, {"choices": []}, {"choices": [1]}, {"choices": [{"delta": {"content": None}}]}]
)
def test_chunks_without_text(chunk: dict[str, Any]) -> None:
    """A chunk that has no text, such as that with the usage, is no event."""
    assert text_events(chunk) == b""


async def test_pieces_come_as_they_are_generated(proxy: Proxy, upstream: StandIn) -> None:
    """A piece is there before the next one is generated."""
    go_on = asyncio.Event()

    async def respond(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(piece("first"))
        await go_on.wait()
        await response.write(piece("last") + DONE)
        return response

    upstream.respond = respond
    async with proxy.http.post(proxy.url + STREAM, json={"prompt": "x"}) as response:
        assert await asyncio.wait_for(response.content.readany(), 3) == b"data: first\n\n"
        go_on.set()
        assert await response.content.read() == b"data: last\n\n"


@pytest.mark.parametrize("last", [b"", b"data: {\n\n", b"data: {no json}\n\n"])
async def test_a_bad_end_is_an_error_event(proxy: Proxy, upstream: StandIn, last: bytes) -> None:
    """A stream that breaks ends with an event of type `error`, which no text can be taken for."""
    upstream.respond = streamed(piece("a"), last)
    first, error = (await stream(proxy, {"prompt": "x"})).strip().split(b"\n\n")
    assert first == b"data: a"
    kind, data = error.split(b"\n")
    assert kind == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "upstream_stream_broken"


async def test_errors_before_the_stream_have_a_status(proxy: Proxy, upstream: StandIn) -> None:
    """What goes wrong before the first piece is an answer with a status."""
    upstream.respond = answered(503, "", "text/plain")
    status, body = await post(proxy, STREAM, {"prompt": "x"})
    assert (status, body["error"]["code"]) == (503, "upstream_error")


@pytest.mark.parametrize("path", [GENERATE, STREAM])
@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"[]", "invalid_type", None),
        ({}, "missing_required_parameter", "prompt"),
        ({"prompt": ["a", "b"]}, "invalid_type", "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"prompt": "x", "n": 2}, "integer_above_max_value", "n"),
    ],
)
async def test_bad_requests_stop_here(
    proxy: Proxy, upstream: StandIn, path: str, body: Any, code: str, param: str | None
) -> None:
    """A bad request is refused with its own field's name before any upstream is touched."""
    status, refusal = await post(proxy, path, body)
    assert (status, refusal["error"]["code"]) == (400, code)
    assert refusal["error"]["param"] == param
    assert upstream.requests == []


@pytest.mark.parametrize("choices", [[], [1], [{"text": 1}], "none"])
async def test_answers_that_are_none(proxy: Proxy, upstream: StandIn, choices: Any) -> None:
    """An answer without a text is 502, not a 500."""
    upstream.respond = answered_json(completion("x") | {"choices": choices})
    status, body = await post(proxy, GENERATE, ASKED)
    assert (status, body["error"]["code"]) == (502, "upstream_invalid_response")


async def test_the_deadline_holds(upstream: StandIn) -> None:
    """Translated requests have the same deadline, and count as running."""

    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        return web.Response()

    upstream.respond = hang
    async with harness.proxy(upstream_url=upstream.url, request_timeout_seconds=0.2) as proxy:
        asked = asyncio.create_task(post(proxy, GENERATE, ASKED))
        await until(lambda: len(proxy.lifecycle._running) == 1)
        status, body = await asked
    assert (status, body["error"]["code"]) == (504, "request_timeout")


async def test_a_client_that_leaves(proxy: Proxy, upstream: StandIn) -> None:
    """When the client is gone the upstream's connection is closed."""

    async def respond(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(piece("a"))
        await asyncio.sleep(3600)
        return response

    upstream.respond = respond
    async with proxy.http.post(proxy.url + STREAM, json={"prompt": "x"}) as response:
        await response.content.readany()
        response.close()
    await asyncio.wait_for(upstream.closed.wait(), 3)


async def test_the_body_limit_holds(upstream: StandIn) -> None:
    """A body over the limit is 413 here, too."""
    async with harness.proxy(upstream_url=upstream.url, max_body_bytes=100) as proxy:
        status, body = await post(proxy, GENERATE, {"prompt": "x" * 200})
    assert (status, body["error"]["code"]) == (413, "request_too_large")


async def test_metrics_have_the_path(proxy: Proxy, upstream: StandIn) -> None:
    """Requests are counted under the path that the client used, with their model."""
    upstream.respond = answered_json(completion("a"))
    await post(proxy, GENERATE, ASKED | {"model": "tiny"})
    await until(lambda: len(proxy.lifecycle._running) == 0)
    async with proxy.http.get(f"{proxy.url}/metrics") as response:
        text = await response.text()
    assert 'requests_total{model="tiny",path="/api/generate",status="200"} 1.0' in text
