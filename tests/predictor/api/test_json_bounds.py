"""Bodies are bounded before KServe's SDK parses them, when a route reads them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from kserve_llamacpp.api.json_bounds import JSONBounds
from kserve_llamacpp.api.openai import GENERATING
from openai_protocol.errors import InvalidRequest
from openai_protocol.request_limits import RequestLimits

PREDICT = "/v1/models/m:predict"


async def read(path: str, body: bytes, reads: bool = True, **headers: str) -> list[bytes]:
    """Send a body to a route; return what it has read."""
    seen: list[bytes] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if reads:
            seen.append((await receive())["body"])

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: Message) -> None:
        raise AssertionError("the route sends nothing")

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "path": path, "headers": pairs}
    await JSONBounds(route, RequestLimits(), GENERATING)(scope, receive, send)
    return seen


async def refusal(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await read(PREDICT, body)
    return caught.value


async def test_a_good_body_is_read_as_it_came() -> None:
    """What is within the bounds reaches the route untouched."""
    body = json.dumps({"instances": [{"messages": [{"role": "user", "content": "é"}]}] * 2})

    assert await read(PREDICT, body.encode()) == [body.encode()]


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[{"prompt":"a","prompt":"b"}]}',
        b'{"instances":["a"],"parameters":{"seed":1,"seed":2}}',
        b'{"data":{"instances":[{"parameters":{"seed":1,"seed":2}}]}}',
    ],
)
async def test_names_are_given_once_in_whatever_becomes_a_request(body: bytes) -> None:
    """A field twice in an instance or in parameters is refused by its name, in CloudEvents too."""
    error = await refusal(body)

    assert error.param in ("prompt", "seed")
    assert "more than once" in error.message


async def test_a_body_that_nobody_reads_is_not_looked_at() -> None:
    """A path without a route stays a 404: its body is no matter."""
    assert await read("/nowhere", b"{", reads=False) == []


async def test_routes_with_checks_of_their_own_are_left_alone() -> None:
    """OpenAI's routes check a body while they parse it, not twice."""
    assert await read("/openai/v1/completions", b"{") == [b"{"]


async def test_tensors_behind_json_are_no_json() -> None:
    """Of a V2 body with binary tensors only the head is looked at."""
    body = b'{"inputs":[]}\xff\xff'

    assert await read("/v2/models/m/infer", body, inference_header_content_length="13") == [body]


@pytest.mark.parametrize("unit", [b"[],", b'{"a":1},', b'"",', b"1,", b"[", b"[{"])
async def test_eight_megabytes_of_anything_are_refused_at_once(unit: bytes) -> None:
    """What is refused has not kept the event loop from others."""
    body = b'{"instances":[' + unit * ((8 << 20) // len(unit))
    started = time.process_time()

    error = await refusal(body)

    assert error.status == 400
    assert time.process_time() - started < 0.2  # 20 to 60 ms; to parse it takes a second
