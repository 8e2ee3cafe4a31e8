"""Limits: what is refused before any upstream is touched, and how it is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from openai_protocol.errors import InvalidRequest
from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy.config import load
from tests.proxy import harness
from tests.proxy.harness import CHAT, COMPLETION, MESSAGES, Proxy, StandIn
from tests.proxy.test_request_head import talk

LIMITS = RequestLimits(max_json_depth=8, max_messages=3)


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """A chat request of this depth, with one field of nothing but brackets."""
    inner = opening * (depth - 1) + closing * (depth - 1)
    return b'{"messages": [{"role": "user", "content": "hi"}], "x": %s}' % inner.encode()


def refusal(body: bytes, limits: RequestLimits = LIMITS) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        limits.parse(ChatCompletionRequest, body)
    return raised.value


# Depth


def test_depth() -> None:
    """As deep as the limit is taken; a level more is refused with a text that says so."""
    LIMITS.parse(ChatCompletionRequest, nested(8))
    error = refusal(nested(9))
    assert (error.status, error.code) == (400, "invalid_value")
    assert "more than 8 deep" in error.message


def test_depth_of_objects() -> None:
    """Objects count as lists do."""
    body = b'{"messages": [{"role": "user", "content": "hi"}], "x": %s1%s}'
    LIMITS.parse(ChatCompletionRequest, body % (b'{"a":' * 7, b"}" * 7))
    assert "more than 8 deep" in refusal(body % (b'{"a":' * 8, b"}" * 8)).message


@pytest.mark.parametrize(
    "text",
    ["[" * 100, '\\"' + "[" * 100, "\\\\", '\\\\\\"[[[[[[[[[[[[[', "{" * 50 + "\\\\", '"]}' * 30],
)
def test_brackets_in_strings_are_text(text: str) -> None:
    """What stands in strings is no nesting, however it is escaped."""
    messages = [{"role": "user", "content": text}, {"role": "user", "content": "[" * 99}]
    body = json.dumps({"messages": messages, "x": [text]}).encode()
    asked = LIMITS.parse(ChatCompletionRequest, body)
    assert asked.messages[0].content == text


def test_many_lists_are_not_deep() -> None:
    """A wide body is not a deep one."""
    body = json.dumps({"prompt": [[1, 2]] * 100}).encode()
    assert len(LIMITS.parse(CompletionRequest, body).prompts()) == 100


@pytest.mark.parametrize("body", [b"[" * 100_000, b"]" * 1000, b'{"a":' * 100_000, b"[}" * 9000])
def test_unbalanced_brackets(body: bytes) -> None:
    """What is no JSON is refused as such or as too deep, at once and without a crash."""
    assert refusal(body).code in ("invalid_json", "invalid_value")


def test_the_parsers_own_limit_is_further_away() -> None:
    """The deepest body that a setting allows is not too deep for the parser."""
    RequestLimits(200, 3).parse(ChatCompletionRequest, nested(200))


@pytest.mark.parametrize(
    ("message", "depth", "param"),
    [
        ('"content": "hi", "x": %s', 3, "messages[1]"),
        ('"content": [{"type": "text", "text": "hi", "x": %s}]', 5, "messages[1].content"),
    ],
)
def test_depth_inside_messages(message: str, depth: int, param: str) -> None:
    """What stands in messages and their parts counts from where it stands; the error says where."""
    start = '{"messages": [{"role": "user", "content": ""}, {"role": "user", %s}]}'
    levels = 8 - depth
    fits = start % message % ("[" * levels + "]" * levels)
    LIMITS.parse(ChatCompletionRequest, fits.encode())
    error = refusal((start % message % ("[" * (levels + 1) + "]" * (levels + 1))).encode())
    assert (error.code, error.param) == ("invalid_value", param)


# Messages


def test_messages() -> None:
    """More messages than the limit are refused, naming the field; as many are taken."""
    message = {"role": "user", "content": "hi"}
    LIMITS.parse(ChatCompletionRequest, json.dumps({"messages": [message] * 3}).encode())
    error = refusal(json.dumps({"messages": [message] * 4}).encode())
    assert (error.param, error.code) == ("messages", "array_above_max_length")
    assert "at most 3" in error.message


# What upstreams would read differently


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"a","messages":[{"role":"user","content":"x"}],"model":"b"}', "model"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"max_tokens":9}', None),
        (b'{"mod\\u0065l":"a","messages":[{"role":"user","content":"x"}],"model":"b"}', "model"),
        (b'{"messages":[{"role":"user","content":"a,b{"}],"x":[1,{"y":2}],"x":{}}', "x"),
        (b'{"messages":[{"role":"user","content":"\\\\"}],"x":"\\",","x":{}}', "x"),
        (b'{"messages":[{"role":"user","content":"x"}],"x":%s,"x":1}' % (b"9" * 4000), "x"),
    ],
)
def test_two_fields_of_one_name(body: bytes, param: str | None) -> None:
    """A field that is given twice is refused: one server would take the first, another the last."""
    error = refusal(body)
    assert error.param == (param or "max_tokens")
    assert "more than once" in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"x": "a,b,c,d"},
        {"x": [1, 2, 3, [4, 5, {"a": 1, "b": 2}]], "y": {}, "z": [], "stop": [",", '","']},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {}}}}]},
        {"x": '\\",\\"', "y": "\\", "z": '"'},
    ],
)
def test_fields_of_different_names(fields: dict[str, Any]) -> None:
    """Commas in strings, lists and inner objects make no twins."""
    for separators in ((",", ":"), (" ,\n", " : ")):
        body = json.dumps({"messages": MESSAGES, **fields}, separators=separators).encode()
        LIMITS.parse(ChatCompletionRequest, body)


@pytest.mark.parametrize(
    ("name", "meant"), [("Model", "model"), ("STREAM", "stream"), ("max_to\u212aens", "max_tokens")]
)
def test_other_spellings_of_a_field(name: str, meant: str) -> None:
    """A name that some servers take for a known one is refused: no check of that one would hold."""
    error = refusal(json.dumps({"messages": MESSAGES, name: "x"}).encode())
    assert (error.param, error.code) == (name, "unknown_parameter")
    assert f"'{meant}'" in error.message


# JSON that is none, or strange


async def post(proxy: Proxy, body: bytes) -> tuple[int, Any]:
    async with proxy.http.post(proxy.url + CHAT, data=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": [{"role": "user", "content": "hi"}],}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a\x00b"}]}',
        b'{"messages": [{"role": "user", "content": "hi"}]} \x00',
        b'{"messages": [{"role": "user", "content": "hi"}], "x": NaN}',
        b'{"messages": [{"role": "user", "content": "hi"}], "x": [-Infinity]}',
        b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "hi"}]}',
        '{"messages": [{"role": "user", "content": "hi"}]}'.encode("utf-16"),
        b"[" * 300,
    ],
)
async def test_what_is_no_json(proxy: Proxy, upstream: StandIn, body: bytes) -> None:
    """Bytes that are no JSON are refused as such, with line and column, and go nowhere."""
    status, answer = await post(proxy, body)
    assert status == 400
    if answer["error"]["code"] != "invalid_value":  # nested too deeply
        assert answer["error"]["code"] == "invalid_json"
        assert "line 1 column" in answer["error"]["message"]
    assert not upstream.requests


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (b'"seed": 1%s' % (b"0" * 400), "seed"),
        (b'"max_tokens": 99999999999999999999', "max_tokens"),
        (b'"temperature": 1e999', "temperature"),
        (b'"temperature": -1e-999999', None),
        (b'"n": 1.0000000000000000000001', "n"),
        (b'"model": "%s"' % (b"a" * 300), "model"),
        (b'"user": "%s"' % (b"\\u0000" * 600), "user"),
    ],
)
async def test_huge_numbers(proxy: Proxy, fields: bytes, param: str | None) -> None:
    """A number beyond its field's range is refused by name; one that only looks odd is taken."""
    body = b'{"messages": [{"role": "user", "content": "hi"}], %s}' % fields
    status, answer = await post(proxy, body)
    assert status == (200 if param is None else 400), answer
    if param is not None:
        assert answer["error"]["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        b'"x": 1%s' % (b"0" * 5000),
        b'"x": 1e999',
        b'"x": "\\u0000"',
        b'"resume": {}, "x": 1%s' % (b"0" * 4000),
        b'"resume": 1, "x": 1e999',
    ],
)
async def test_strange_values_of_unknown_fields(proxy: Proxy, fields: bytes) -> None:
    """What nobody here reads is no error of the server, whatever it is."""
    body = b'{"messages": [{"role": "user", "content": "\\u0000"}], %s}' % fields
    status, _ = await post(proxy, body)
    assert status in (200, 400)


async def test_settings_reach_the_endpoint(upstream: StandIn) -> None:
    """max_json_depth and max_messages hold for requests, before the upstream hears of them."""
    async with harness.proxy(upstream_url=upstream.url, max_json_depth=5, max_messages=1) as proxy:
        assert (await proxy.chat())[0] == 200
        assert len(upstream.requests) == 1
        assert (await proxy.chat(messages=MESSAGES * 2))[0] == 400
        assert (await proxy.chat(x=[[[[[]]]]]))[0] == 400
    assert len(upstream.requests) == 1


# How many at a time


async def test_concurrent_requests(upstream: StandIn) -> None:
    """Past the limit a request gets 429 with Retry-After at once; health and models are served."""
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response(COMPLETION)

    upstream.respond = wait
    async with harness.proxy(upstream_url=upstream.url, max_concurrent_requests=2) as proxy:
        running = [asyncio.create_task(proxy.chat()) for _ in range(2)]
        await harness.until(lambda: len(upstream.requests) == 2)
        body = {"model": "tiny", "messages": MESSAGES}
        async with proxy.http.post(proxy.url + CHAT, json=body) as response:
            assert response.status == 429
            assert int(response.headers["retry-after"]) >= 1
            error = (await response.json())["error"]
            assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
        for path in ("/health/live", "/health/ready", "/v1/models"):
            assert (await proxy.get(path))[0] == 200
        release.set()
        assert [status for status, _ in await asyncio.gather(*running)] == [200, 200]
        assert (await proxy.chat())[0] == 200
    assert len(upstream.requests) == 3


async def test_a_reload_counts_what_runs(upstream: StandIn) -> None:
    """Requests that began before a reload count on, and give their places when they end."""
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response(COMPLETION)

    upstream.respond = wait
    settings = {"upstream_url": upstream.url, "max_concurrent_requests": 2}
    async with harness.proxy(**settings) as proxy:
        running = [asyncio.create_task(proxy.chat()) for _ in range(2)]
        await harness.until(lambda: len(upstream.requests) == 2)
        await proxy.lifecycle.reload(load({**settings, "max_retries": 1}))
        status, _ = await asyncio.wait_for(proxy.chat(), 5)
        assert status == 429
        release.set()
        assert [status for status, _ in await asyncio.gather(*running)] == [200, 200]
        assert (await proxy.chat())[0] == 200


async def test_a_client_that_leaves_gives_its_place(upstream: StandIn) -> None:
    """A request whose client is gone counts no more; neither does one that failed."""

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with harness.proxy(upstream_url=upstream.url, max_concurrent_requests=1) as proxy:
        assert (await proxy.chat(messages=[]))[0] == 400
        upstream.respond = never
        leaving = asyncio.create_task(proxy.chat())
        await asyncio.wait_for(upstream.began.wait(), 5)
        assert (await proxy.chat())[0] == 429
        leaving.cancel()
        await asyncio.wait_for(upstream.closed.wait(), 5)
        upstream.respond = harness.answered_json(COMPLETION)

        async def is_served() -> bool:
            return (await proxy.chat())[0] == 200

        await harness.until(is_served)


async def test_a_refused_body_does_not_spoil_the_connection(upstream: StandIn) -> None:
    """A request that got 429 before its long body was read leaves its connection usable."""

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    upstream.respond = never
    async with harness.proxy(upstream_url=upstream.url, max_concurrent_requests=1) as proxy:
        running = asyncio.create_task(proxy.chat())
        await asyncio.wait_for(upstream.began.wait(), 5)
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
        )
        get = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        answers = await talk(proxy, head % 4_000_000, b"a" * 4_000_000, get)
        assert answers.startswith(b"HTTP/1.1 429")
        assert answers.count(b"HTTP/1.1 200") == 1
        running.cancel()


# Heads


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        (
            b"POST / HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked\r\ncontent-length: 3"
            b"\r\n\r\n"
        ),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked"
            b"\r\n\r\nz\r\n"
        ),
    ],
)
async def test_what_is_no_http(proxy: Proxy, head: bytes) -> None:
    """Bytes that are no HTTP get 400 in the envelope, and their connection is closed."""
    answer = await talk(proxy, head)
    start, _, body = answer.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"connection: close" in start
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
