"""Every error reaches the client in OpenAI's envelope, with a stable code."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import structlog
from aiohttp import web

from tests.proxy import harness
from tests.proxy.harness import (
    CHAT,
    DONE,
    MESSAGES,
    Proxy,
    Respond,
    StandIn,
    answered,
    answered_json,
    chunk,
    start_stream,
    streamed,
)


def error_of(body: Any) -> dict[str, Any]:
    """The envelope's content, checked for its form."""
    assert set(body) == {"error"}
    assert set(body["error"]) >= {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def last_event(stream: str) -> Any:
    """The decoded data of a stream's last event."""
    return json.loads(stream.strip().rsplit("data: ", 1)[1])


OWN_REFUSALS = [
    (b"{", 400, "invalid_json", None),
    (b'{"messages": []}', 400, "empty_messages", "messages"),
    (b"{}", 400, "missing_required_parameter", "messages"),
    (b'{"messages": [{"role": "user"}]}', 400, "missing_required_parameter", "messages[0].content"),
    (
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
        400,
        "integer_below_min_value",
        "max_tokens",
    ),
    (b"\xff\xfe", 400, "invalid_json", None),
    (b"[" * 50_000, 400, "invalid_json", None),
    (b"", 400, "invalid_json", None),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), OWN_REFUSALS)
async def test_bad_requests_stop_here(
    proxy: Proxy, upstream: StandIn, body: bytes, status: int, code: str, param: str | None
) -> None:
    """A bad request is refused with the field's name before any upstream is touched."""
    async with proxy.http.post(proxy.url + CHAT, data=body) as response:
        assert response.status == status
        error = error_of(await response.json())
    assert (error["code"], error["param"]) == (code, param)
    assert upstream.requests == []


UPSTREAM_ERRORS: list[tuple[Respond, int, str, str]] = [
    # as it is: an envelope with a 4xx status
    (
        answered_json(
            {"error": {"message": "no", "type": "t", "param": "p", "code": "c", "more": 1}}, 418
        ),
        418,
        "c",
        "no",
    ),
    # a code of ours under 5xx comes from a server of ours
    (
        answered_json(
            {"error": {"message": "busy", "type": "t", "param": None, "code": "queue_full"}}, 503
        ),
        503,
        "queue_full",
        "busy",
    ),
    # given OpenAI's form
    (answered_json({"detail": "Not Found"}, 404), 404, "upstream_error", "Not Found"),
    (
        answered_json({"detail": [{"loc": ["body", "n"], "msg": "too big", "type": "x"}]}, 422),
        422,
        "upstream_error",
        "too big",
    ),
    (answered_json({"error": "no such model"}, 404), 404, "upstream_error", "no such model"),
    (
        answered_json({"object": "error", "message": "bad", "type": "B", "code": 400}, 400),
        400,
        "upstream_error",
        "bad",
    ),
    (answered(400, "<html>", "text/html"), 400, "upstream_error", "HTTP 400"),
    (answered(404, "", "text/plain"), 404, "upstream_error", "HTTP 404"),
    (answered_json({"error": "slow down"}, 429), 429, "rate_limit_exceeded", "slow down"),
    # 5xx texts are not passed
    (answered_json({"error": "secret at 10.0.0.1"}, 500), 502, "upstream_error", "failed"),
    (
        answered_json({"error": {"message": "secret", "type": "t", "code": "boom"}}, 500),
        502,
        "upstream_error",
        "failed",
    ),
    (answered(503, "secret", "text/plain"), 503, "upstream_error", "not available"),
    (answered(504, "secret", "text/html"), 504, "request_timeout", "in time"),
    # no answers at all
    (answered(200, "<html>secret", "text/html"), 502, "upstream_invalid_response", "understood"),
    (answered(200, "", "application/json"), 502, "upstream_invalid_response", "understood"),
    (answered(200, "[]", "application/json"), 502, "upstream_invalid_response", "understood"),
    (answered(200, '{"choices"', "application/json"), 502, "upstream_invalid_response", "under"),
    (answered_json({"error": "secret"}), 502, "upstream_error", "failed"),
    (answered(204, "", "text/plain"), 502, "upstream_invalid_response", "understood"),
    (
        answered(307, "", "text/plain", location="http://10.0.0.1/"),
        502,
        "upstream_invalid_response",
        "understood",
    ),
    (
        answered(200, b"\x1f\x8b..", "application/json", **{"content-encoding": "gzip"}),
        502,
        "upstream_invalid_response",
        "understood",
    ),
    (streamed(chunk("a"), DONE), 502, "upstream_invalid_response", "understood"),
]


@pytest.mark.parametrize(("respond", "status", "code", "text"), UPSTREAM_ERRORS)
async def test_upstream_errors(
    proxy: Proxy, upstream: StandIn, respond: Respond, status: int, code: str, text: str
) -> None:
    """Whatever an upstream answers, the client gets an envelope, and nothing of the inside."""
    upstream.respond = respond
    got, body = await proxy.chat()
    error = error_of(body)
    assert (got, error["code"]) == (status, code)
    assert text in error["message"]
    assert "secret" not in error["message"]
    assert "10.0.0.1" not in error["message"]


@pytest.mark.parametrize(
    ("respond", "status", "code"),
    [
        (answered_json(harness.COMPLETION), 502, "upstream_invalid_response"),
        (answered_json({"detail": "Not Found"}, 404), 404, "upstream_error"),
        (streamed(), 502, "upstream_stream_broken"),
        (streamed(b"data: {"), 502, "upstream_stream_broken"),
        (streamed(b"<html>\n\n"), 502, "upstream_stream_broken"),
        (streamed(b": only a comment\n\n"), 502, "upstream_stream_broken"),
    ],
)
async def test_errors_before_the_first_event_have_a_status(
    proxy: Proxy, upstream: StandIn, respond: Respond, status: int, code: str
) -> None:
    """A stream that goes wrong before its first event is an HTTP error, not an event."""
    upstream.respond = respond
    got, body = await proxy.chat(stream=True)
    assert (got, error_of(body)["code"]) == (status, code)


async def test_passed_envelope_is_untouched(proxy: Proxy, upstream: StandIn) -> None:
    """An upstream's own 4xx envelope passes byte for byte, with its Retry-After."""
    raw = b'{"error": {"message":"later","type":"x","param":null,"code":429} }'
    upstream.respond = answered(429, raw, "application/json", **{"retry-after": "7"})
    async with proxy.http.post(proxy.url + CHAT, json={"messages": MESSAGES}) as response:
        assert response.status == 429
        assert await response.read() == raw
        assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"data: {",
        b"data: not json\n\n",
        b'data: {"cut": \n\n',
        b"no field\n\n",
        b"\xff\xfe\n\n",
    ],
)
async def test_broken_streams_end_with_an_error_event(
    proxy: Proxy, upstream: StandIn, broken: bytes
) -> None:
    """A stream without a good end is never cut off silently: its last event says what happened."""
    upstream.respond = streamed(chunk("a"), broken)
    stream = await proxy.stream()
    assert stream.startswith(chunk("a").decode())
    assert error_of(last_event(stream))["code"] == "upstream_stream_broken"
    assert "[DONE]" not in stream


async def test_connection_lost_in_mid_stream(proxy: Proxy, upstream: StandIn) -> None:
    """An upstream connection that is reset in mid-stream becomes an error event."""

    async def respond(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(chunk("a"))
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    upstream.respond = respond
    assert error_of(last_event(await proxy.stream()))["code"] == "upstream_stream_broken"


@pytest.mark.parametrize(
    ("event", "code", "message"),
    [
        (
            b'data: {"error": {"message":"m","type":"t","param":null,"code":"engine_failed"}}\n\n',
            "engine_failed",
            "m",
        ),
        (
            b'event: error\ndata: { "error" : "secret text" }\n\n',
            "upstream_error",
            "The upstream failed to process the request.",
        ),
        (
            b'data: {"error":{"message":"secret","type":"InternalServerError","code":500}}\n\n',
            "upstream_error",
            "The upstream failed to process the request.",
        ),
    ],
)
async def test_upstream_error_events(
    proxy: Proxy, upstream: StandIn, event: bytes, code: str, message: str
) -> None:
    """An upstream's error event ends the stream once, in OpenAI's form."""
    upstream.respond = streamed(chunk("a"), event, chunk("b"))
    stream = await proxy.stream()
    error = error_of(last_event(stream))
    assert (error["code"], error["message"]) == (code, message)
    assert stream.count('"error"') == 1
    assert stream.count("data:") == 2


async def test_text_that_looks_like_an_error_is_no_error(proxy: Proxy, upstream: StandIn) -> None:
    """A model that writes an error event as its text does not end its stream."""
    text = chunk('data: {"error": "x"}\n\ndata: [DONE]\n\n')
    upstream.respond = streamed(text, chunk("b"), DONE)
    assert await proxy.stream() == (text + chunk("b") + DONE).decode()


async def test_connection_refused() -> None:
    """An upstream that is not there gives 502 with a code of its own, and no address."""
    port = harness.refused_port()
    async with harness.proxy(upstream_url=f"http://127.0.0.1:{port}") as proxy:
        status, body = await proxy.chat()
        assert (status, error_of(body)["code"]) == (502, "upstream_connection_failed")
        assert str(port) not in body["error"]["message"]


async def test_connection_closed_without_an_answer(proxy: Proxy, upstream: StandIn) -> None:
    """An upstream that hangs up instead of answering gives 502."""

    async def respond(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    upstream.respond = respond
    status, body = await proxy.chat()
    assert (status, error_of(body)["code"]) == (502, "upstream_connection_failed")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "unknown_url"),
        ("POST", "/v1/nope", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/unknown", 404, "model_not_found"),
        ("GET", "/v1/models/a/b%2Fc%20d", 404, "model_not_found"),
    ],
)
async def test_unknown_paths(proxy: Proxy, method: str, path: str, status: int, code: str) -> None:
    """Unknown paths, methods and models are refused in OpenAI's envelope, too."""
    async with proxy.http.request(method, proxy.url + path) as response:
        assert (response.status, error_of(await response.json())["code"]) == (status, code)


@pytest.mark.parametrize(
    "models", [answered(500, "secret", "text/plain"), answered(200, "[1]", "application/json")]
)
async def test_bad_list_of_models(proxy: Proxy, upstream: StandIn, models: Respond) -> None:
    """A list of models that cannot be had is 502."""
    upstream.models = models
    status, body = await proxy.get("/v1/models")
    assert status == 502
    assert "secret" not in error_of(body)["message"]


async def test_body_limit_by_content_length(upstream: StandIn) -> None:
    """A body that says it is too long is refused with 413; one byte less passes."""
    async with harness.proxy(upstream_url=upstream.url, max_body_bytes=1000) as proxy:
        padding = 1000 - len(json.dumps({"messages": MESSAGES, "user": ""}))
        for extra, expected in ((0, 200), (1, 413)):
            body = json.dumps({"messages": MESSAGES, "user": "x" * (padding + extra)})
            body = body.replace('"x', '"x')
            if padding + extra > 512:
                body = json.dumps({"messages": MESSAGES, "extra": "x" * (padding + extra - 1)})
            async with proxy.http.post(proxy.url + CHAT, data=body.encode()) as response:
                assert response.status == expected, (len(body), await response.text())
                if expected == 413:
                    assert error_of(await response.json())["code"] == "request_too_large"


async def test_body_limit_while_reading(upstream: StandIn) -> None:
    """A chunked body that grows past the limit is refused with 413."""

    async def endless():
        for _ in range(100):
            yield b"x" * 1000

    async with harness.proxy(upstream_url=upstream.url, max_body_bytes=5000) as proxy:
        async with proxy.http.post(proxy.url + CHAT, data=endless()) as response:
            assert response.status == 413
            assert error_of(await response.json())["code"] == "request_too_large"
        assert upstream.requests == []


@pytest.mark.parametrize("head", ["content-length: 3000000", "transfer-encoding: chunked"])
async def test_body_limit_is_told_to_clients_that_send_all_first(
    upstream: StandIn, head: str
) -> None:
    """A client that reads the answer only after its whole body still gets the 413."""
    body = b"x" * 3_000_000
    if "chunked" in head:
        body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    async with harness.proxy(upstream_url=upstream.url, max_body_bytes=1000) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n".encode() + body)
        await writer.drain()
        await asyncio.sleep(0.1)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"request_too_large" in answer
        writer.close()
        await writer.wait_closed()


async def test_unexpected_failure_is_an_envelope(proxy: Proxy) -> None:
    """A bug of ours gives `internal_error`, on hot paths and on declared ones, and is logged."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("my secret prompt")

    proxy.lifecycle._service._router.use(Broken())  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logs:
        status, body = await proxy.chat()
    assert (status, error_of(body)["code"]) == (500, "internal_error")
    assert "secret" not in body["error"]["message"]
    assert "request_failed" in [line["event"] for line in logs]
    async with proxy.http.get(f"{proxy.url}/v1/models") as response:
        assert (response.status, error_of(await response.json())["code"]) == (500, "internal_error")
