"""What a client asks for reaches its upstream, or is refused by its name: nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from openai_protocol.chat_template import ChatTemplate
from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from openai_proxy.dialects.base import COMPLETIONS, Call, Dialect
from openai_proxy.dialects.registry import _DIALECTS, make_dialect
from tests.proxy.translating import chat, sent, text

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION = {"name": "f", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
# A value of each parameter that changes what is generated
BOTH: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "typical_p": 0.5,
    "n": 2, "seed": 7, "max_tokens": 5, "stop": "END", "logit_bias": {"1": 1},
    "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.1,
    "ignore_eos": True, "min_tokens": 2, "stop_token_ids": [1], "priority": 1,
    "include_stop_str_in_output": True, "skip_special_tokens": False, "cache_salt": "x",
    "dry_multiplier": 1, "dry_base": 2, "dry_allowed_length": 3, "dry_penalty_last_n": 4,
    "dry_sequence_breakers": ["a"], "xtc_probability": 0.5, "xtc_threshold": 0.2,
    # what is none of our fields: OpenAI's, vLLM's, llama-server's, nobody's
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    "regex": "a+", "ebnf": 'root ::= "a"', "grammar": 'root ::= "a"', "guided_json": SCHEMA,
    "reasoning_effort": "low", "think": True, "verbosity": "low", "frobs": 1,
}  # fmt: skip
CHAT: dict[str, Any] = {
    **BOTH,
    "max_completion_tokens": 5, "logprobs": True, "tools": TOOLS, "functions": [FUNCTION],
    "tool_choice": "required", "function_call": {"name": "f"}, "modalities": ["audio"],
    "audio": {"voice": "alloy"}, "prediction": {"type": "content", "content": "a"},
    "web_search_options": {}, "chat_template_kwargs": {"enable_thinking": False},
}  # fmt: skip
TEXT: dict[str, Any] = {**BOTH, "logprobs": 1, "echo": True, "best_of": 2, "suffix": "end"}
# Fields that do not change what is generated, and those that are tried elsewhere
OTHERS = {"model", "messages", "prompt", "stream", "stream_options", "user", "top_logprobs"}

render = ChatTemplate("{{ messages[-1].content }}", "", "").render
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("kserve-v1", {}),
    ("kserve-v1", {"instance": "text"}),
    ("kserve-v2", {}),
    ("kserve-v2", {"api": "generate"}),
    ("triton", {}),
    ("triton", {"backend": "vllm"}),
    ("triton", {"backend": "tensorrt-llm", "defaults": {"max_tokens": 9}}),
    ("shimmy", {}),
    ("shimmy", {"path": "/api/generate"}),
    ("ollama", {}),
    ("tgi", {}),
    ("sglang", {}),
]
RENDERS_ITSELF = {"shimmy", "ollama"}
EACH = pytest.mark.parametrize(
    "dialect",
    [
        pytest.param(
            make_dialect(name, options, "refuse", None if name in RENDERS_ITSELF else render),
            id="-".join([name, *map(str, list(options.values())[:1])]),
        )
        for name, options in OPTIONS
    ],
)


def is_lost(dialect: Dialect, call: Call, plain: Call, param: str) -> bool:
    """Whether a call is sent as a plain one is, or refused for something else."""
    try:
        return bool(sent(dialect, call) == sent(dialect, plain))
    except InvalidRequest as refused:
        return refused.status != 400 or not (refused.param or "").startswith(param)


def test_every_dialect_and_every_field_is_here() -> None:
    """What nobody tries would be lost unseen; `openai` passes requests as they are."""
    assert {name for name, _ in OPTIONS} | {"openai"} == set(_DIALECTS)
    assert GenerationRequest.model_fields.keys() - OTHERS <= BOTH.keys()
    assert ChatCompletionRequest.model_fields.keys() - OTHERS <= CHAT.keys()
    assert CompletionRequest.model_fields.keys() - OTHERS <= TEXT.keys()


@EACH
def test_parameters_of_chats(dialect: Dialect) -> None:
    """Each parameter of a chat changes what is sent, or is refused by its name."""
    for name, value in CHAT.items():
        # TGI tells tokens with all else that it tells: only alternatives are asked for
        more = {"top_logprobs": 1} if name == "logprobs" else {}
        assert not is_lost(dialect, chat(**{name: value}, **more), chat(), name), name


@EACH
def test_parameters_of_texts(dialect: Dialect) -> None:
    """Each parameter of a text completion changes what is sent, or is refused by its name."""
    if COMPLETIONS in dialect.endpoints:
        for name, value in TEXT.items():
            assert not is_lost(dialect, text(**{name: value}), text(), name), name


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
MESSAGES: dict[str, list[Any]] = {
    "image": [{"role": "user", "content": [{"type": "text", "text": "hi"}, IMAGE]}],
    "audio": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
    "file": [{"role": "user", "content": [{"type": "file", "file": {}}]}],
    "tool call": [{"role": "assistant", "content": "hi", "tool_calls": [CALL]}],
    "tool": [{"role": "tool", "content": "hi", "tool_call_id": "c"}],
}


@EACH
@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_that_are_not_text(dialect: Dialect, kind: str) -> None:
    """What is more than text in a message is sent, or refused with its place."""
    assert not is_lost(dialect, chat(messages=MESSAGES[kind]), chat(), "messages[0]")


@EACH
@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1, 2], [3]]])
def test_prompts(dialect: Dialect, prompt: Any) -> None:
    """Several prompts, and token ids, are sent as they are, or refused."""
    if COMPLETIONS in dialect.endpoints:
        assert not is_lost(dialect, text(prompt=prompt), text(prompt="a"), "prompt")
