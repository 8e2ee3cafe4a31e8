"""How many values a body has and how deep they are, told without parsing it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.errors import InvalidRequest
from openai_protocol.json_shape import NUMBERS_PER_VALUE, Shape, ShapeLimits
from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy.api.passing import EmbeddingsRequest, PassedRequest
from tests.proxy import harness
from tests.proxy.harness import MESSAGES, Proxy, StandIn

FINE = Shape(is_too_long=False, is_too_deep=False)
TOO_LONG = Shape(is_too_long=True, is_too_deep=False)
TOO_DEEP = Shape(is_too_long=False, is_too_deep=True)
EIGHT_MB = 8 * 1024 * 1024 - 200

texts = st.text(alphabet='[]{},"\\n\u00e9a', max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def counted(value: Any) -> tuple[int, int]:
    """The lists, objects and texts of a value, and its depth."""
    if isinstance(value, str):
        return 1, 0
    if isinstance(value, dict):
        inner = [*value, *value.values()]
    elif isinstance(value, list):
        inner = value
    else:
        return 0, 0
    found = [counted(each) for each in inner]
    return 1 + sum(n for n, _ in found), 1 + max((depth for _, depth in found), default=0)


@given(values, st.booleans())
def test_it_counts_as_a_parser_would(value: Any, is_ascii: bool) -> None:
    """Values and depth are those of the parsed text, whatever stands in its strings."""
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    num_values, depth = counted(value)
    assert ShapeLimits(max(num_values, 1), max(depth, 1)).look_at(body) == FINE
    if num_values:
        assert ShapeLimits(num_values - 1, 99).look_at(body).is_too_long
    if depth:
        assert ShapeLimits(999, depth - 1).look_at(body) == TOO_DEEP


def test_numbers_count_less() -> None:
    """A list of tokens may be longer than one of texts, but is bounded, too."""
    limits = ShapeLimits(100, 9)
    as_many = b"[%s]" % b",".join([b"1"] * (100 * NUMBERS_PER_VALUE))
    assert limits.look_at(as_many) == FINE
    assert limits.look_at(as_many[:-1] + b",1,1]") == TOO_LONG


def filled(unit: bytes) -> bytes:
    """A list of eight megabytes of this."""
    return b"[" + unit * (EIGHT_MB // len(unit)) + unit.rstrip(b",") + b"]"


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest, PassedRequest])
@pytest.mark.parametrize("unit", [b"[],", b"[[1]],", b"{},", b'{"a":1},', b'"",', b"1,", b"["])
def test_many_values_are_refused_before_they_are_parsed(kind: type[Any], unit: bytes) -> None:
    """Eight megabytes of them are refused by their number, though they are no good JSON at all."""
    body = b'{"messages":[{"role":"user","content":"hi"}],"prompt":"hi",bad,"x":%s}' % filled(unit)
    with pytest.raises(InvalidRequest, match="it has more than") as raised:
        RequestLimits().parse(kind, body)
    assert (raised.value.status, raised.value.code) == (400, "invalid_value")


def part(**fields: Any) -> bytes:
    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, fields]}
    return json.dumps({"model": "tiny", "messages": [message]}).encode()


CODE = 'int a[3] = {1, 2, 3};\n\tfoo(a[0], "\\"x\\"");\n'
HONEST: dict[str, tuple[type[Any], bytes]] = {
    "a picture": (ChatCompletionRequest, part(type="image_url", url="iVBORw0K" * 1_000_000)),
    "a long text": (ChatCompletionRequest, part(type="text", text="hello world " * 650_000)),
    "much source code": (ChatCompletionRequest, part(type="text", text=CODE * 120_000)),
    "4,096 messages": (
        ChatCompletionRequest,
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a, b"}] * 2}
                    for _ in range(4096)
                ]
            }
        ).encode(),
    ),
    "2,048 lists of tokens": (
        EmbeddingsRequest,
        json.dumps({"input": [[12345] * 580] * 2048}).encode(),
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_bodies_are_taken(name: str) -> None:
    """What a client may well send passes, up to the eight megabytes that a body may have."""
    kind, body = HONEST[name]
    assert len(body) <= EIGHT_MB
    RequestLimits().parse(kind, body)


def test_many_fields_take_no_longer_than_few() -> None:
    """Twins are looked for in one pass, however many fields there are."""
    fields = ",".join(f'"field{n}":1' for n in range(20_000))
    body = b'{"messages":[{"role":"user","content":"hi"}],%s}' % fields.encode()
    started = time.process_time()
    RequestLimits().parse(ChatCompletionRequest, body)
    assert time.process_time() - started < 1  # it was ten seconds with a pass for each
    with pytest.raises(InvalidRequest, match="'field7' is given more than once"):
        RequestLimits().parse(ChatCompletionRequest, body[:-1] + b',"field7":2}')


PATHS = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["a"]},
    "/tokenize": {"prompt": "hi"},
    "/api/generate": {"prompt": "hi"},
    "/api/generate/stream": {"prompt": "hi"},
    "/v1/api/chat": {"messages": MESSAGES},
}


async def post(proxy: Proxy, path: str, body: bytes) -> tuple[int, Any]:
    async with proxy.http.post(proxy.url + path, data=body) as response:
        return response.status, (await response.json())["error"]


@pytest.mark.parametrize("path", PATHS)
async def test_every_endpoint_is_bounded(upstream: StandIn, path: str) -> None:
    """Number, depth and twins are checked for all that is posted, and no upstream hears of it."""
    async with harness.proxy(upstream_url=upstream.url, max_json_values=1024) as proxy:
        for extra, says in (
            ({"x": [[]] * 1100}, "more than 1024 lists"),
            ({"x": json.loads("[" * 80 + "]" * 80)}, "more than 64 deep"),
        ):
            status, error = await post(proxy, path, json.dumps(PATHS[path] | extra).encode())
            assert (status, error["code"]) == (400, "invalid_value")
            assert says in error["message"]
        twins = json.dumps({"model": "a"} | PATHS[path]).encode()[:-1] + b',"model":"b"}'
        status, error = await post(proxy, path, twins)
        assert (status, error["param"]) == (400, "model")
    assert not upstream.requests
