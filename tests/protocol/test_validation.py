"""From bytes to checked requests: every bad input names its field, with a stable code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.requests import (
    MAX_LOGIT_BIASES,
    MAX_MESSAGES,
    MAX_PROMPTS,
    MAX_SEQUENCE_BREAKERS,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKENS,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
)
from openai_protocol.validation import check_request, field_path, parse_request

_HI = [{"role": "user", "content": "hi"}]


def _refusal(model: type[GenerationRequest], body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(model, body)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def _refused_chat(**fields: Any) -> InvalidRequest:
    return _refusal(ChatCompletionRequest, json.dumps({"messages": _HI, **fields}).encode())


def _refused_text(prompt: Any) -> InvalidRequest:
    return _refusal(CompletionRequest, json.dumps({"prompt": prompt}).encode())


@pytest.mark.parametrize(
    ("body", "line", "column"),
    [
        (b"", 1, 0),
        (b'{"messages": ', 1, 13),
        (b'{\n  "messages": oops\n}', 2, 15),
        (b"\xff\xfe", 1, 1),
        (b'{"messages": "\\ud800"}', 1, 21),
        (b"[" * 100_000, 1, 202),
    ],
)
def test_malformed_json_is_located(body: bytes, line: int, column: int) -> None:
    """Malformed JSON is told with line and column, and blames no field."""
    error = _refusal(ChatCompletionRequest, body)

    assert (error.code, error.param) == ("invalid_json", None)
    assert f"at line {line} column {column}." in error.message


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"5"])
def test_a_body_must_be_an_object(body: bytes) -> None:
    """JSON that is no object is a wrong type, not a crash."""
    error = _refusal(ChatCompletionRequest, body)

    assert (error.code, error.param) == ("invalid_type", None)
    assert error.message.startswith("Invalid request body: input should be an object")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "empty_messages", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": ["hi"]}, "invalid_type", "messages[0]"),
        ({"messages": _HI * (MAX_MESSAGES + 1)}, "array_above_max_length", "messages"),
        (
            {"messages": [*_HI, {"role": "user"}]},
            "missing_required_parameter",
            "messages[1].content",
        ),
        (
            {"messages": [{"role": "system", "content": None}]},
            "missing_required_parameter",
            "messages[0].content",
        ),
        ({"messages": [{"content": "x"}]}, "missing_required_parameter", "messages[0].role"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"max_tokens": -1}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": 2**31}, "integer_above_max_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"max_tokens": "5"}, "invalid_type", "max_tokens"),
        ({"max_tokens": True}, "invalid_type", "max_tokens"),
        ({"max_completion_tokens": -3}, "integer_below_min_value", "max_completion_tokens"),
        ({"max_completion_tokens": 2**64}, "integer_above_max_value", "max_completion_tokens"),
        ({"temperature": -0.1}, "decimal_below_min_value", "temperature"),
        ({"temperature": -1}, "decimal_below_min_value", "temperature"),
        ({"temperature": 2.1}, "decimal_above_max_value", "temperature"),
        ({"temperature": float("nan")}, "decimal_above_max_value", "temperature"),
        ({"temperature": float("inf")}, "decimal_above_max_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"top_p": 0}, "decimal_below_min_value", "top_p"),
        ({"top_p": 1.1}, "decimal_above_max_value", "top_p"),
        ({"top_k": -2}, "integer_below_min_value", "top_k"),
        ({"top_k": 2**64}, "integer_above_max_value", "top_k"),
        ({"min_p": 2}, "decimal_above_max_value", "min_p"),
        ({"repetition_penalty": 0}, "decimal_below_min_value", "repetition_penalty"),
        ({"presence_penalty": 3}, "decimal_above_max_value", "presence_penalty"),
        ({"frequency_penalty": -3}, "decimal_below_min_value", "frequency_penalty"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 129}, "integer_above_max_value", "n"),
        ({"min_tokens": -1}, "integer_below_min_value", "min_tokens"),
        ({"typical_p": 0}, "decimal_below_min_value", "typical_p"),
        ({"typical_p": 1.5}, "decimal_above_max_value", "typical_p"),
        ({"xtc_probability": 2}, "decimal_above_max_value", "xtc_probability"),
        ({"xtc_threshold": -0.5}, "decimal_below_min_value", "xtc_threshold"),
        ({"dry_multiplier": -1}, "decimal_below_min_value", "dry_multiplier"),
        ({"dry_base": 0.5}, "decimal_below_min_value", "dry_base"),
        ({"dry_allowed_length": 0}, "integer_below_min_value", "dry_allowed_length"),
        ({"dry_penalty_last_n": -2}, "integer_below_min_value", "dry_penalty_last_n"),
        ({"dry_sequence_breakers": "a"}, "invalid_type", "dry_sequence_breakers"),
        ({"dry_sequence_breakers": [""]}, "invalid_value", "dry_sequence_breakers[0]"),
        (
            {"dry_sequence_breakers": ["a", "b" * 41]},
            "string_above_max_length",
            "dry_sequence_breakers[1]",
        ),
        (
            {"dry_sequence_breakers": ["a"] * (MAX_SEQUENCE_BREAKERS + 1)},
            "array_above_max_length",
            "dry_sequence_breakers",
        ),
        ({"stop_token_ids": 5}, "invalid_type", "stop_token_ids"),
        ({"stop_token_ids": [1, -1]}, "integer_below_min_value", "stop_token_ids[1]"),
        (
            {"stop_token_ids": [1] * (MAX_STOP_TOKENS + 1)},
            "array_above_max_length",
            "stop_token_ids",
        ),
        ({"skip_special_tokens": 1}, "invalid_type", "skip_special_tokens"),
        ({"include_stop_str_in_output": "a"}, "invalid_type", "include_stop_str_in_output"),
        ({"logprobs": 5}, "invalid_type", "logprobs"),
        ({"top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
        ({"seed": 2**63}, "integer_above_max_value", "seed"),
        ({"seed": -(2**63) - 1}, "integer_below_min_value", "seed"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": {"include_usage": 1}}, "invalid_type", "stream_options.include_usage"),
        ({"model": ""}, "invalid_value", "model"),
        ({"model": "m" * 257}, "string_above_max_length", "model"),
        ({"user": 5}, "invalid_type", "user"),
        ({"logit_bias": []}, "invalid_type", "logit_bias"),
        ({"logit_bias": {"7": 101}}, "decimal_above_max_value", "logit_bias"),
        ({"logit_bias": {"7": float("nan")}}, "decimal_above_max_value", "logit_bias"),
        (
            {"logit_bias": {str(i): 0 for i in range(MAX_LOGIT_BIASES + 1)}},
            "array_above_max_length",
            "logit_bias",
        ),
    ],
)
def test_a_bad_field_is_named_with_its_code(fields: dict[str, Any], code: str, param: str) -> None:
    """A chat request with one bad field is refused with that field's name and a stable code."""
    error = _refused_chat(**fields)

    assert (error.code, error.param) == (code, param)
    assert f"'{param}'" in error.message


@pytest.mark.parametrize(
    ("stop", "code", "param"),
    [
        (5, "invalid_type", "stop"),
        ("", "invalid_value", "stop"),
        ([""], "invalid_value", "stop[0]"),
        (["a", 5], "invalid_type", "stop[1]"),
        ("a" * (MAX_STOP_LENGTH + 1), "string_above_max_length", "stop"),
        (["b", "a" * (MAX_STOP_LENGTH + 1)], "string_above_max_length", "stop[1]"),
        (["a"] * (MAX_STOP_STRINGS + 1), "array_above_max_length", "stop"),
    ],
)
def test_a_bad_stop_is_blamed_in_the_form_that_was_meant(stop: Any, code: str, param: str) -> None:
    """`stop` is a text or a list of texts; a complaint is about the form that was sent."""
    error = _refused_chat(stop=stop)

    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (5, "invalid_type", "messages[0].content"),
        ([5], "invalid_type", "messages[0].content[0]"),
        ([{"text": "a"}], "missing_required_parameter", "messages[0].content[0].type"),
        (
            [{"type": "text", "text": "a"}, {"type": "text", "text": 5}],
            "invalid_type",
            "messages[0].content[1].text",
        ),
    ],
)
def test_bad_content_is_located_without_the_unions_names(
    content: Any, code: str, param: str
) -> None:
    """A path holds fields and indices alone, nothing of the types that a field may have."""
    error = _refused_chat(messages=[{"role": "user", "content": content}])

    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        (None, "invalid_type", "prompt"),
        (5, "invalid_type", "prompt"),
        ([], "empty_prompt", "prompt"),
        ([[]], "empty_prompt", "prompt[0]"),
        ([[1], []], "empty_prompt", "prompt[1]"),
        ([-1], "integer_below_min_value", "prompt[0]"),
        ([0, 2**31], "integer_above_max_value", "prompt[1]"),
        ([10**23], "integer_above_max_value", "prompt[0]"),
        ([True], "invalid_type", "prompt[0]"),
        ([1, "a"], "invalid_type", "prompt[1]"),
        (["a", 1], "invalid_type", "prompt[1]"),
        ([[1], "a"], "invalid_type", "prompt[1]"),
        ([[1], [2, -1]], "integer_below_min_value", "prompt[1][1]"),
        ([["a"]], "invalid_type", "prompt[0][0]"),
        (["a"] * (MAX_PROMPTS + 1), "array_above_max_length", "prompt"),
        ([[1]] * (MAX_PROMPTS + 1), "array_above_max_length", "prompt"),
    ],
)
def test_a_bad_prompt_is_blamed_in_the_form_that_was_meant(
    prompt: Any, code: str, param: str
) -> None:
    """A prompt has four forms; a complaint is about the one that fits the most of what came."""
    error = _refused_text(prompt)

    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"logprobs": 21}, "integer_above_max_value", "logprobs"),
        ({"logprobs": -1}, "integer_below_min_value", "logprobs"),
        ({"best_of": 0}, "integer_below_min_value", "best_of"),
        ({"best_of": 129}, "integer_above_max_value", "best_of"),
        ({"echo": "yes"}, "invalid_type", "echo"),
    ],
)
def test_a_bad_field_of_completions_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    """What completions alone have, or have in another form, is checked in that form."""
    error = _refusal(CompletionRequest, json.dumps({"prompt": "x", **fields}).encode())

    assert (error.code, error.param) == (code, param)


def test_the_missing_field_is_named() -> None:
    """A body without its main field is told which."""
    chat = _refusal(ChatCompletionRequest, b"{}")
    text = _refusal(CompletionRequest, b"{}")

    assert (chat.code, chat.param) == ("missing_required_parameter", "messages")
    assert (text.code, text.param) == ("missing_required_parameter", "prompt")


def test_the_first_wrong_field_is_reported() -> None:
    """Of several wrong fields, the first of the model's order is reported."""
    error = _refused_chat(max_tokens=-1, stop=["a", 5], temperature="hot")

    assert error.param == "temperature"


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (CompletionRequest, b'{"prompt": [%s]}'),
        (ChatCompletionRequest, b'{"messages": [{"role": "user", "content": [%s]}]}'),
    ],
)
def test_a_million_mistakes_are_one_error(
    model: type[GenerationRequest], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of pydantic's complaints does not grow with the body: that would stop a server."""
    counts = []

    def count(error: Any) -> InvalidRequest:
        counts.append(error.error_count())
        return InvalidRequest("counted")

    monkeypatch.setattr("openai_protocol.validation.invalid_request", count)
    _refusal(model, body % b",".join([b"1.5"] * 20_000))

    assert counts[0] < 10


def test_a_long_value_is_not_repeated() -> None:
    """The message shows a short value, and leaves out a long one."""
    assert "but got 'no'" in _refused_chat(stream="no").message
    assert "aaa" not in _refused_chat(stream="a" * 1000).message


def test_a_decoded_body_is_checked_alike() -> None:
    """What was decoded elsewhere is refused as the same bytes would be."""
    with pytest.raises(InvalidRequest) as caught:
        check_request(ChatCompletionRequest, {"messages": _HI, "n": 0})

    assert (caught.value.code, caught.value.param) == ("integer_below_min_value", "n")


@pytest.mark.parametrize(
    ("loc", "path"),
    [
        ((), ""),
        (("messages", 0, "content", "list[ContentPart]", 1, "text"), "messages[0].content[1].text"),
        (("stop", "constrained-str"), "stop"),
        (("prompt", "str"), "prompt"),
        (("logit_bias", "7"), "logit_bias"),
    ],
)
def test_paths_are_written_as_openai_does(loc: tuple[int | str, ...], path: str) -> None:
    """Fields are joined by dots, indices stand in brackets, a union's branch is left out."""
    assert field_path(loc) == path


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    field=st.sampled_from(sorted(CompletionRequest.model_fields)),
    value=_json_values,
)
def test_whatever_a_field_holds_the_answer_is_a_request_or_a_listed_error(
    field: str, value: Any
) -> None:
    """No JSON in any field makes anything else than a request or an error with a listed code."""
    error = _refusal_if_any(json.dumps({"prompt": "x", field: value}).encode())

    assert error is None or error.code in set(ErrorCode)
    assert error is None or (error.param or "").startswith(field)


def _refusal_if_any(body: bytes) -> InvalidRequest | None:
    try:
        parse_request(CompletionRequest, body)
    except InvalidRequest as error:
        return error
    return None
