"""Whatever an upstream answers, its client gets an answer of OpenAI's form, or an error of ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openai_protocol.errors import ApiError
from openai_protocol.sse import MEDIA_TYPE
from openai_proxy.dialects.base import AnswerHead, Call, Dialect
from openai_proxy.dialects.ollama import OllamaDialect
from openai_proxy.dialects.registry import make_dialect
from tests.proxy.translating import OK, chat, fed, render, text

# What upstreams call things: by chance alone no answer would come near one
NAMES = (
    *("text", "response", "message", "content", "thinking", "tool_calls", "function", "name"),
    *("arguments", "done", "done_reason", "error", "logprobs", "token", "logprob", "bytes"),
    *("top_logprobs", "prompt_eval_count", "eval_count", "generated_text", "details", "tokens"),
    *("top_tokens", "finish_reason", "special", "id", "meta_info", "output_token_logprobs"),
    *("output_top_logprobs", "completion_tokens", "prompt_tokens", "index", "choices", "delta"),
    *("usage", "text_output", "num_input_tokens", "rank", "decoded_token", "predictions"),
    *("outputs", "datatype", "shape", "data", "parameters", "binary_data_size", "type", "matched"),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["a", "[]", '[{"1":{}}]', "stop", "length", "abort", "BYTES", "\ufffd"]),
)
JSON = st.recursive(
    LEAVES,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(NAMES), some),
    max_leaves=6,
)
# Answers as they should be, where any value of any field may be another one
SHAPES: list[tuple[str, dict[str, Any], Any]] = [
    ("kserve-v1", {}, {"predictions": [{"text": "a", "finish_reason": "stop", "usage": {}}]}),
    ("kserve-v2", {}, {"outputs": [{"name": "o", "datatype": "BYTES", "data": ["a"]}]}),
    ("kserve-v2", {"api": "generate"}, {"text_output": "a", "details": {"finish_reason": "x"}}),
    (
        "triton",
        {"backend": "vllm"},
        {"text_output": "a", "finish_reason": "stop", "logprobs": "[]", "num_input_tokens": 1},
    ),
    ("shimmy", {}, {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}),
    ("shimmy", {"path": "/api/generate"}, {"response": "a", "usage": {}}),
    (
        "ollama",
        {},
        {
            "message": {"content": "a", "thinking": "b", "tool_calls": [{"function": {}}]},
            "done": True,
            "response": "a",
            "logprobs": [{"token": "a", "top_logprobs": [{}]}],
            "eval_count": 1,
            "prompt_eval_count": 1,
        },
    ),
    (
        "tgi",
        {},
        {
            "generated_text": "a",
            "token": {"text": "a", "special": False, "logprob": -1},
            "details": {"tokens": [{"text": "a"}], "top_tokens": [[{}]], "generated_tokens": 1},
        },
    ),
    (
        "sglang",
        {},
        {
            "text": "a",
            "meta_info": {
                "finish_reason": {"type": "stop", "matched": 1},
                "completion_tokens": 1,
                "prompt_tokens": 1,
                "output_token_logprobs": [[-1, 1, "a"]],
                "output_top_logprobs": [[[-1, 1, "a"]]],
            },
        },
    ),
]
EACH = pytest.mark.parametrize(
    ("dialect", "shape"),
    [
        pytest.param(
            make_dialect(name, options, "drop", None if name in ("shimmy", "ollama") else render),
            shape,
            id="-".join([name, *options.values()]),
        )
        for name, options, shape in SHAPES
    ],
)
CALLS = st.sampled_from(
    [
        chat(stream=True, stop=["a"], logprobs=True, top_logprobs=2),
        text(stream=True, logprobs=1, include_stop_str_in_output=True),
        text(stream=True, n=1),
    ]
)


@st.composite
def changed(draw: st.DrawFn, shape: Any) -> Any:
    """A value in which some are others, or missing."""
    if draw(st.integers(0, 7)) == 0:
        return draw(JSON)
    if isinstance(shape, dict):
        kept = {
            name: draw(changed(held)) for name, held in shape.items() if draw(st.integers(0, 9))
        }
        return kept | draw(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=1))
    if isinstance(shape, list):
        return [draw(changed(held)) for held in shape for _ in range(draw(st.integers(0, 2)))]
    return shape


def check_choices(found: Any) -> None:
    """Every choice has text, and as many logprobs as tokens."""
    for choice in found.get("choices", []):
        logprobs = choice["logprobs"]
        if logprobs is not None and "tokens" in logprobs:
            assert len({len(held) for held in logprobs.values() if held is not None}) == 1


def frames(dialect: Dialect, parts: list[str]) -> bytes:
    """A stream as an upstream sends it; those that send none answer in one piece."""
    if isinstance(dialect, OllamaDialect):
        return "\n".join(parts).encode()
    if MEDIA_TYPE not in dialect.stream_types:
        return "".join(parts[:1]).encode()
    return "".join(f"data: {part}\n\n" for part in parts).encode()


@EACH
@settings(max_examples=25)  # the values are large: more would take longer than all others
@given(data=st.data(), call=CALLS, status=st.integers(400, 599))
def test_any_answer(
    dialect: Dialect, shape: Any, data: st.DataObject, call: Call, status: int
) -> None:
    """Of any answer, stream or error comes one of OpenAI's form, as JSON knows it, or our error."""
    parts = [json.dumps(data.draw(changed(shape))) for _ in range(3)]
    with contextlib.suppress(ApiError):
        whole = dialect.answer(call, OK, parts[0].encode())
        check_choices(json.loads(whole, parse_constant=pytest.fail))

    events, error = fed(dialect.stream(call), frames(dialect, parts))
    for event in events:
        if event != "[DONE]":
            check_choices(event)
    assert error is not None or events[-1] == "[DONE]"

    body = json.dumps({"error": json.loads(parts[0])}).encode()
    refused = dialect.error(AnswerHead(status, "application/json"), body)
    assert (refused.status >= 400, "error" in json.loads(refused.body())) == (True, True)
