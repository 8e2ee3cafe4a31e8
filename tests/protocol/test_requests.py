"""What a checked request says, where OpenAI has several ways to say it."""

from __future__ import annotations

from typing import Any

import pytest

from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from openai_protocol.validation import parse_request


def _chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[{"role": "user", "content": "hi"}], **fields)


@pytest.mark.parametrize(
    ("stop", "expected"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"]), ([], [])]
)
def test_stop_is_always_a_list(stop: Any, expected: list[str]) -> None:
    """A single stop string and none at all are lists, too."""
    assert _chat(stop=stop).stop_strings() == expected


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
    ],
)
def test_the_newer_name_of_the_limit_wins(fields: dict[str, int], limit: int | None) -> None:
    """`max_completion_tokens` is taken before `max_tokens`; neither is no limit."""
    assert _chat(**fields).token_limit == limit


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([0], [[0]]),
        ("", [""]),
        (["", ""], ["", ""]),
    ],
)
def test_a_prompt_in_any_form_is_a_list_of_prompts(prompt: Any, prompts: list[Any]) -> None:
    """One text, several texts, one list of tokens, several lists: each prompt comes by itself."""
    assert CompletionRequest(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize(
    ("options", "is_wanted"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": None}, False),
        ({"include_usage": False}, False),
        ({"include_usage": True}, True),
        ({"include_usage": True, "later": 1}, True),
    ],
)
def test_usage_is_streamed_only_when_asked_for(options: Any, is_wanted: bool) -> None:
    """A stream ends with its usage only where `stream_options.include_usage` is true."""
    assert _chat(stream_options=options).include_usage is is_wanted


@pytest.mark.parametrize(
    ("request_body", "num_top"),
    [
        (_chat(), None),
        (_chat(logprobs=False), None),
        (_chat(logprobs=True), 0),
        (_chat(logprobs=True, top_logprobs=5), 5),
        (CompletionRequest(prompt="a"), None),
        (CompletionRequest(prompt="a", logprobs=0), 0),
        (CompletionRequest(prompt="a", logprobs=5), 5),
    ],
)
def test_logprobs_are_asked_for_in_two_ways(
    request_body: GenerationRequest, num_top: int | None
) -> None:
    """A chat has a switch and a number, a completion a number alone."""
    assert request_body.num_top_logprobs == num_top


@pytest.mark.parametrize(
    ("fields", "given", "generated"),
    [({}, 1, 1), ({"n": 3}, 3, 3), ({"best_of": 4}, 1, 4), ({"n": 2, "best_of": 4}, 2, 4)],
)
def test_more_choices_may_be_generated_than_given(
    fields: dict[str, int], given: int, generated: int
) -> None:
    """`best_of` is the number to choose from; without it all are given."""
    body = CompletionRequest(prompt="a", **fields)

    assert (body.num_choices, body.num_generated_choices) == (given, generated)


def test_unknown_fields_are_kept() -> None:
    """Each server decides itself about fields that this module does not know."""
    assert _chat(tools=[], later=1).model_extra == {"tools": [], "later": 1}


def test_an_assistants_message_may_be_empty() -> None:
    """Only those who ask need content: an assistant's turn may have none."""
    body = {"messages": [{"role": "assistant", "content": None}, {"role": "tool"}]}

    assert [m.content for m in ChatCompletionRequest(**body).messages] == [None, None]


def test_too_many_biases_are_refused_by_their_number() -> None:
    """A map of 20,000 wrong entries is one error about their number, at once."""
    biases = ",".join(f'"{n}":"x"' for n in range(20_000))
    body = b'{"prompt":"a","logit_bias":{%s}}' % biases.encode()
    with pytest.raises(InvalidRequest) as caught:
        parse_request(CompletionRequest, body)

    assert (caught.value.param, caught.value.code) == ("logit_bias", "array_above_max_length")
    assert "not 20000" in caught.value.message


def test_a_prompt_of_tokens_is_not_copied() -> None:
    """A list of a million tokens is the same one whenever it is asked for."""
    request = CompletionRequest(prompt=[1, 2, 3])

    assert request.prompts()[0] is request.prompts()[0]
    assert request.prompts() == [[1, 2, 3]]
