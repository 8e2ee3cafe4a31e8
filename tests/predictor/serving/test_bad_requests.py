"""Bad input gets a 4xx in OpenAI's envelope that names the field; the server keeps serving."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.model

USER = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
PREDICT = "/v1/models/smollm2:predict"

DEEP = b'"x":' + b"[" * 64 + b"]" * 64
MANY = b'"x":[' + b"[]," * 65536 + b"1]"
LONG = b"9" * 100_000


def chat(rest: bytes) -> bytes:
    return b'{"messages":[{"role":"user","content":"Hi"}],' + rest + b"}"


def text(rest: bytes) -> bytes:
    return b'{"prompt":"Hi",' + rest + b"}"


def instances(rest: bytes) -> bytes:
    return b'{"instances":[{"prompt":"Hi",' + rest + b"}]}"


# What the proxy refuses of any body, the predictor does on each of its routes.
BOUNDS: list[tuple[bytes, str | None, str]] = [
    (DEEP, None, "invalid_value"),
    (MANY, None, "invalid_value"),
    (b'"temperature":NaN', None, "invalid_json"),
    (b'"temperature":-Infinity', None, "invalid_json"),
    (b'"seed":' + LONG, None, "invalid_json"),
    (b'"seed":1,"seed":2', "seed", "invalid_value"),
    (rb'"seed":1,"\u0073eed":2', "seed", "invalid_value"),
]

CASES: list[tuple[str, Any, int, str | None, str]] = [
    (CHAT, b'{"messages": [', 400, None, "invalid_json"),
    (CHAT, b"\xff\xfe\x00", 400, None, "invalid_json"),
    (CHAT, [], 400, None, "invalid_type"),
    (CHAT, {"messages": []}, 400, "messages", "empty_messages"),
    (CHAT, {}, 400, "messages", "missing_required_parameter"),
    (CHAT, {"messages": USER, "model": "no-such"}, 404, "model", "model_not_found"),
    (CHAT, {"messages": USER, "max_tokens": -1}, 400, "max_tokens", "integer_below_min_value"),
    (CHAT, {"messages": USER, "max_tokens": "9"}, 400, "max_tokens", "invalid_type"),
    (CHAT, {"messages": USER, "temperature": 9}, 400, "temperature", "decimal_above_max_value"),
    (CHAT, {"messages": USER, "n": 128, "best_of": 2}, 400, "best_of", "unknown_parameter"),
    (CHAT, {"messages": USER, "top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
    (
        CHAT,
        {"messages": USER, "logprobs": True, "top_logprobs": 21},
        400,
        "top_logprobs",
        "integer_above_max_value",
    ),
    (TEXT, {"prompt": "a", "n": 3, "best_of": 2}, 400, "best_of", "invalid_value"),
    (TEXT, {"prompt": ["a"] * 2, "n": 128}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": "a", "stop_token_ids": [10**6]}, 400, "stop_token_ids[0]", "invalid_value"),
    (CHAT, {"messages": USER, "tools": [{}]}, 400, "tools", "unsupported_parameter"),
    (CHAT, {"messages": USER, "max_token": 3}, 400, "max_token", "unknown_parameter"),
    (CHAT, {"messages": USER, "logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_value"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "long " * 9000}]},
        400,
        "messages",
        "context_length_exceeded",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages[0].content[0].type",
        "unsupported_value",
    ),
    (TEXT, {"prompt": ""}, 400, "prompt", "empty_prompt"),
    (TEXT, {"prompt": []}, 400, "prompt", "empty_prompt"),
    (TEXT, {"prompt": [10**6]}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": "a", "stop": [""]}, 400, "stop[0]", "invalid_value"),
    (TEXT, {"prompt": "a", "priority": "high"}, 400, "priority", "invalid_type"),
    (TEXT, {"prompt": "a", "priority": 2**31}, 400, "priority", "integer_above_max_value"),
    (TEXT, {"prompt": "a", "cache_salt": ""}, 400, "cache_salt", "invalid_value"),
    (TEXT, {"prompt": "a", "cache_salt": "s" * 999}, 400, "cache_salt", "string_above_max_length"),
    (TEXT, {"prompt": "x" * (9 << 20)}, 413, None, "request_too_large"),
    (PREDICT, b"{", 400, None, "invalid_json"),
    (PREDICT, {}, 400, "instances", "missing_required_parameter"),
    (PREDICT, {"instances": "text"}, 400, "instances", "invalid_type"),
    (PREDICT, {"instances": []}, 400, "instances", "invalid_value"),
    (PREDICT, {"instances": [3]}, 400, "instances[0]", "invalid_value"),
    (
        PREDICT,
        {"instances": ["a", {"messages": []}]},
        400,
        "instances[1].messages",
        "empty_messages",
    ),
    (
        PREDICT,
        {"instances": ["a", {"prompt": "b", "max_tokens": -1}]},
        400,
        "instances[1].max_tokens",
        "integer_below_min_value",
    ),
    (
        PREDICT,
        {"instances": ["a"], "parameters": {"n": 2}},
        400,
        "parameters.n",
        "unsupported_parameter",
    ),
    (
        PREDICT,
        {"instances": [{"prompt": "b", "logprobs": 0}]},
        400,
        "instances[0].logprobs",
        "unsupported_parameter",
    ),
    *((CHAT, chat(rest), 400, param, code) for rest, param, code in BOUNDS),
    *((TEXT, text(rest), 400, param, code) for rest, param, code in BOUNDS),
    *((PREDICT, instances(rest), 400, param, code) for rest, param, code in BOUNDS),
    (PREDICT, b'{"instances":["a"],"instances":["b"]}', 400, "instances", "invalid_value"),
    (CHAT, {"messages": USER, "Model": "x"}, 400, "Model", "unknown_parameter"),
    ("/v1/models/no-such:predict", {"instances": ["a"]}, 404, "model", "model_not_found"),
    ("/v1/no-such-path", {}, 404, None, "unknown_url"),
    ("/v1/models/smollm2:explain", {"instances": ["a"]}, 404, None, "unknown_url"),
    (
        "/v2/models/smollm2/infer",
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]},
        404,
        None,
        "unknown_url",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "param", "code"), CASES)
async def test_bad_request(
    http: httpx2.AsyncClient, path: str, body: Any, status: int, param: str | None, code: str
) -> None:
    """The status, the field's name and the code are those of the table, and the next one works."""
    headers = {"content-type": "application/json"}
    if isinstance(body, bytes):
        answer = await http.post(path, content=body, headers=headers)
    else:
        answer = await http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]
    good = await http.post(TEXT, json={"prompt": "One", "max_tokens": 1})
    assert good.status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, {"messages": USER}), (TEXT, {"prompt": "a"}), (PREDICT, {"instances": ["a"]})],
)
async def test_bad_tenant(http: httpx2.AsyncClient, path: str, body: Any) -> None:
    """A header X-Tenant that is no name is refused by its name, on every route that generates."""
    answer = await http.post(path, json=body, headers={"x-tenant": "x" * 129})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Tenant"
    good = (
        {**body, "parameters": {"max_tokens": 1}} if path == PREDICT else body | {"max_tokens": 1}
    )
    answer = await http.post(path, json=good, headers={"x-tenant": "team a"})
    assert answer.status_code == 200


async def test_wrong_method(http: httpx2.AsyncClient) -> None:
    """A method that a path does not take is refused in the envelope."""
    answer = await http.get(CHAT)
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_chunked_body_over_the_limit(http: httpx2.AsyncClient) -> None:
    """A body without a length is counted while it comes."""

    async def chunks() -> Any:
        for _ in range(10):
            yield b"x" * (1 << 20)

    answer = await http.post(TEXT, content=chunks())
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


async def test_request_id_is_kept_or_made(http: httpx2.AsyncClient) -> None:
    """A sane request id comes back as it was; a strange one is replaced."""
    for path in ("/v1/models", "/metrics"):
        kept = await http.get(path, headers={"x-request-id": "abc-123"})
        assert kept.headers.get_list("x-request-id") == ["abc-123"]
        made = await http.get(path, headers={"x-request-id": "a b\tc"})
        assert made.headers["x-request-id"].startswith("req-")
