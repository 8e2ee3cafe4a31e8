"""Answers are what OpenAI's own client understands, checked by its types."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from openai_protocol import responses

_HEAD = responses.completion_head("id-1", 1700000000, "m", "fp_1")
_USAGE = responses.usage(3, 4)
types = pytest.importorskip("openai.types")
chat_types = pytest.importorskip("openai.types.chat")


def test_usage_adds_up() -> None:
    """The total is the sum of both kinds of tokens; what was cached is a part of the prompt's."""
    assert responses.usage(3, 4, 2) == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_a_whole_chat_completion_is_openais() -> None:
    """OpenAI's type takes a whole chat answer, with message, reason and usage."""
    choices = [responses.chat_choice(index, "hi", "stop") for index in range(2)]
    read = chat_types.ChatCompletion.model_validate(
        responses.chat_completion(_HEAD, choices, _USAGE), strict=True
    )

    assert read.object == "chat.completion"
    assert read.choices[0].message.content == "hi"
    assert read.choices[0].message.role == "assistant"
    assert read.choices[0].finish_reason == "stop"
    assert [choice.index for choice in read.choices] == [0, 1]
    assert read.usage.total_tokens == 7
    assert read.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("reason", [None, "stop", "length"])
def test_a_chat_chunk_is_openais(reason: str | None) -> None:
    """OpenAI's type takes a chunk, whose reason is null until the end."""
    body = responses.chat_chunk(_HEAD, 1, {"content": "hi"}, reason)
    read = chat_types.ChatCompletionChunk.model_validate(body, strict=True)

    assert read.object == "chat.completion.chunk"
    assert (read.choices[0].index, read.choices[0].delta.content) == (1, "hi")
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


@dataclass(frozen=True)
class _Token:
    text: bytes | str
    logprob: float


@dataclass(frozen=True)
class _Draw:
    drawn: _Token
    top: list[_Token]


_A, _B, _PART = _Token(b"a", -0.5), _Token(b"b", -1.0), _Token(b"\xe2\x82", -2.0)


def test_a_chats_logprobs_are_openais() -> None:
    """Each token has its bytes and its alternatives; a part of a character is written out."""
    logprobs = responses.chat_logprobs([_Draw(_A, [_A, _B]), _Draw(_PART, [])])
    body = responses.chat_chunk(_HEAD, 0, {"content": "a"}, None, logprobs)
    read = chat_types.ChatCompletionChunk.model_validate(body, strict=True)

    first, second = read.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("a", -0.5, [97])
    assert [(token.token, token.logprob) for token in first.top_logprobs] == [
        ("a", -0.5),
        ("b", -1.0),
    ]
    assert (second.token, second.bytes) == ("\\xe2\\x82", [0xE2, 0x82])
    assert second.top_logprobs == []


def test_a_token_whose_bytes_are_not_known() -> None:
    """A token of which only the text is known has null for its bytes, as OpenAI allows it."""
    (entry,) = responses.chat_logprobs([_Draw(_Token("\ufffd", -1.0), [])])["content"]
    assert (entry["token"], entry["bytes"]) == ("\ufffd", None)


def test_where_tokens_begin() -> None:
    """Offsets count characters; one that several tokens share counts for each of them."""
    offsets = responses.TextOffsets()
    texts = ["a", b"\xe2\x82", b"\xac", "é", b"b"]
    assert [offsets.next(text) for text in texts] == [0, 1, 1, 2, 3]


def test_a_texts_logprobs_are_openais() -> None:
    """The old form has four lists; the drawn token is among the alternatives, likely or not."""
    logprobs = responses.text_logprobs([_Draw(_A, [_B]), _Draw(_PART, [_B])], [0, 1], 1)
    choice = responses.text_choice(0, "a€", "stop", logprobs)
    read = types.CompletionChoice.model_validate(choice, strict=True).logprobs

    assert read.tokens == ["a", "bytes:\\xe2\\x82"]
    assert read.token_logprobs == [-0.5, -2.0]
    assert read.top_logprobs == [{"b": -1.0, "a": -0.5}, {"b": -1.0, "bytes:\\xe2\\x82": -2.0}]
    assert read.text_offset == [0, 1]


def test_a_texts_logprobs_without_alternatives() -> None:
    """`logprobs: 0` asks for the drawn tokens alone."""
    assert responses.text_logprobs([_Draw(_A, [])], [0], 0)["top_logprobs"] is None


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
