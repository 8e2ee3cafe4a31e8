"""Whatever bytes a client sends, the proxy answers with no 5xx of its own, and does not hang."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from tests.proxy import harness
from tests.proxy.harness import CHAT, COMPLETION, DONE, Proxy, chunk, start_stream

SECONDS = 8.0  # for each test; examples that come later are not tried
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")

FIELDS = (
    *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "n", "stop"),
    *("temperature", "top_p", "seed", "logit_bias", "tools", "response_format", "resume", "user"),
    *("logprobs", "top_logprobs", "role", "content", "name", "tool_calls", "type", "text"),
)
VALID = json.dumps(
    {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": '\u00e4 \\ " [{,'},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        "max_tokens": 5,
        "stop": ["\n\n", "\\"],
        "stream": False,
        "stream_options": {"include_usage": True},
        "logit_bias": {"5": -1.5e1},
        "seed": -(2**63),
        "x": [None, True, {"a": [[], {}]}],
    }
).encode()
ODD = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\x00", b"\xff", b"\xed\xa0\x80"),
    *(b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"null", b"true"),
    *(b'"model":"b",', b'"resume":{},', b'"stream":true,', b"[" * 70, b"]" * 70, b'{"":' * 70),
)
edits = st.lists(
    st.tuples(
        st.integers(0, len(VALID)), st.integers(0, 12), st.sampled_from(ODD) | st.binary(max_size=4)
    ),
    max_size=4,
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "text", "tiny", ""]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
bodies = (
    st.builds(lambda value, changes: _edited(json.dumps(value).encode(), changes), values, edits)
    | st.builds(lambda value: json.dumps({**json.loads(VALID), **value}).encode(), st.dictionaries(
        st.sampled_from(FIELDS), values, min_size=1, max_size=3))
    | edits.map(lambda changes: _edited(VALID, changes))
    | st.binary(max_size=200)
)  # fmt: skip
HEAD = (
    b"POST /v1/chat/completions?x=%41 HTTP/1.1\r\nhost: localhost\r\norigin: https://a.example\r\n"
    b"x-request-id: 1\r\nauthorization: Bearer a\r\ncontent-type: application/json\r\n"
    b"connection: keep-alive, x-a\r\nx-a: \xe4\r\nexpect: 100-continue\r\ncontent-length: "
)
odd_in_heads = st.sampled_from(
    (
        *(b"\r\n", b"\n", b"\r", b" ", b":", b"\x00", b"\xff", b"%00", b"%", b"/", b"//", b"?"),
        *(b"GET ", b"OPTIONS ", b"HEAD ", b"CONNECT ", b"PRI * HTTP/2.0\r\n\r\n", b"http://a/"),
        *(b"transfer-encoding: chunked\r\n", b"content-length: 0\r\n", b"HTTP/1.0", b"*"),
        *(b"content-length: 99999999999999999999999\r\n", b"upgrade: websocket\r\n", b"../"),
        *(b"connection: close\r\n", b"connection: upgrade\r\n", b"te: trailers\r\n", b"/health"),
        *(b"access-control-request-method: POST\r\n", b"access-control-request-headers: ,\r\n"),
    )
)
head_edits = st.lists(
    st.tuples(st.integers(0, len(HEAD)), st.integers(0, 12), odd_in_heads | st.binary(max_size=4)),
    min_size=1,
    max_size=5,
)


def _edited(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, num_dropped, added in changes:
        data = data[:at] + added + data[at + num_dropped :]
    return data


async def answer(request: web.Request) -> web.StreamResponse:
    """Serve whatever reaches the upstream, as it was asked for."""
    asked = from_json(await request.read())
    if asked.get("stream") is not True:
        return web.json_response(COMPLETION)
    response = await start_stream(request)
    await response.write(chunk("a") + DONE)
    return response


@pytest.fixture
async def fuzzed() -> AsyncIterator[Proxy]:
    async with harness.upstream() as upstream:
        upstream.respond = answer
        async with harness.proxy(
            upstream_url=upstream.url,
            cors_allow_origins="https://a.example",
            log_level="error",
            head_timeout_seconds=0.2,
            body_timeout_seconds=0.2,
        ) as proxy:
            yield proxy


async def exchange(proxy: Proxy, data: bytes, *, ends: bool) -> bytes:
    """Send bytes; return all that comes until the proxy closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(data)
        if ends:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def check(answered: bytes) -> int:
    """Check an answer, return its status; 0 for none."""
    match = _STATUS.match(answered.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
    if match is None:
        assert answered == b"", answered
        return 0
    status = int(match[1])
    assert status < 500 or status in (501, 505), answered  # a coding, a version that we lack
    if status >= 400 and b"content-type: application/json" in answered:
        error: dict[str, Any] = json.loads(answered.rpartition(b"\r\n\r\n")[2])["error"]
        assert set(error) - {"legacy_code"} == {"message", "type", "param", "code"}
    return status


def test_the_examples_are_of_use() -> None:
    """What the edits start from is a request that the proxy takes."""
    assert from_json(VALID)["model"] == "tiny"
    assert _edited(b"abcdef", [(1, 2, b"X")]) == b"aXdef"


_settings = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_settings
@given(body=bodies, path=st.sampled_from([CHAT, "/v1/completions"]))
async def test_bodies(fuzzed: Proxy, body: bytes, path: str) -> None:
    """Any body is served or refused with 4xx in the envelope, at once."""
    if _is_late(fuzzed):
        return
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    status = check(await exchange(fuzzed, head % (path.encode(), len(body)) + body, ends=False))
    assert status in (200, 400), status


@_settings
@given(changes=head_edits)
async def test_heads(fuzzed: Proxy, changes: list[tuple[int, int, bytes]]) -> None:
    """Any head is served, refused with 4xx, or dropped where it does not end."""
    if _is_late(fuzzed):
        return
    data = _edited(HEAD, changes) + b"%d\r\n\r\n" % len(VALID) + VALID
    answered = await exchange(fuzzed, data, ends=True)
    if not answered.startswith(b"HTTP/1.1 1"):
        check(answered)


def _is_late(proxy: Proxy) -> bool:
    began = getattr(proxy, "began_at", None)
    if began is None:
        proxy.began_at = began = time.monotonic()  # type: ignore[attr-defined]
    return bool(time.monotonic() - began > SECONDS)
