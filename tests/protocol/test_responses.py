"""Answers are what OpenAI's own client understands, checked by its types."""

from __future__ import annotations

import pytest

from openai_protocol import responses

_HEAD = responses.completion_head("id-1", 1700000000, "m", "fp_1")
_USAGE = responses.usage(3, 4)
types = pytest.importorskip("openai.types")
chat_types = pytest.importorskip("openai.types.chat")


def test_usage_adds_up() -> None:
    """The total is the sum of both kinds of tokens."""
    assert _USAGE == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_whole_chat_completion_is_openais() -> None:
    """OpenAI's type takes a whole chat answer, with message, reason and usage."""
    body = responses.chat_completion(_HEAD, "hi", "stop", _USAGE)
    read = chat_types.ChatCompletion.model_validate(body, strict=True)

    assert read.object == "chat.completion"
    assert read.choices[0].message.content == "hi"
    assert read.choices[0].message.role == "assistant"
    assert read.choices[0].finish_reason == "stop"
    assert read.usage.total_tokens == 7


@pytest.mark.parametrize("reason", [None, "stop", "length"])
def test_a_chat_chunk_is_openais(reason: str | None) -> None:
    """OpenAI's type takes a chunk, whose reason is null until the end."""
    body = responses.chat_chunk(_HEAD, {"content": "hi"}, reason)
    read = chat_types.ChatCompletionChunk.model_validate(body, strict=True)

    assert read.object == "chat.completion.chunk"
    assert read.choices[0].delta.content == "hi"
    assert read.choices[0].finish_reason == reason


def test_a_whole_text_completion_is_openais() -> None:
    """OpenAI's type takes a text answer with one choice for each prompt, in order."""
    choices = [responses.text_choice(at, text, "length") for at, text in enumerate(("a", "b"))]
    read = types.Completion.model_validate(
        responses.text_completion(_HEAD, choices, _USAGE), strict=True
    )

    assert read.object == "text_completion"
    assert [(choice.index, choice.text) for choice in read.choices] == [(0, "a"), (1, "b")]


def test_a_text_chunk_names_its_choice() -> None:
    """Chunks of several prompts are told apart by their index."""
    body = responses.text_chunk(_HEAD, 3, "x")

    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 3, "text": "x", "logprobs": None, "finish_reason": None}]


def test_the_usage_chunk_has_no_choices() -> None:
    """The last chunk that carries the usage has an empty list of choices, as OpenAI's."""
    body = responses.usage_chunk(_HEAD, "chat.completion.chunk", _USAGE)
    read = chat_types.ChatCompletionChunk.model_validate(body, strict=True)

    assert read.choices == []
    assert read.usage.completion_tokens == 4


def test_models_are_openais() -> None:
    """OpenAI's type takes a model object, and a list holds them under `data`."""
    listed = responses.model_list([responses.model_object("m", 1700000000, "us")])
    (model,) = [types.Model.model_validate(item, strict=True) for item in listed["data"]]

    assert listed["object"] == "list"
    assert (model.id, model.owned_by) == ("m", "us")
