"""What translating dialects make their answers with: OpenAI's form, and what may be asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy.dialects.base import CHAT, COMPLETIONS, Call
from openai_proxy.dialects.form import Choice, ChunkWriter, completion, usage_of
from openai_proxy.dialects.parameters import checked, given

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> Call:
    asked = ChatCompletionRequest.model_validate({"messages": MESSAGES, **fields})
    return Call(CHAT, b"", asked, model="tiny", answer_id="chatcmpl-1", created=7)


def text(**fields: Any) -> Call:
    asked = CompletionRequest.model_validate({"prompt": "hi", **fields})
    return Call(COMPLETIONS, b"", asked, model="tiny", answer_id="cmpl-1", created=7)


def events(data: bytes) -> list[Any]:
    parts = [part.removeprefix("data: ") for part in data.decode().split("\n\n") if part]
    return [part if part == "[DONE]" else json.loads(part) for part in parts]


def test_a_chat() -> None:
    """A whole chat has the client's model, a message and the usage that is known."""
    value = json.loads(completion(chat(), [Choice("Hello", "length")], usage_of(3, 2)))

    assert (value["id"], value["object"], value["created"]) == ("chatcmpl-1", "chat.completion", 7)
    assert value["model"] == "tiny"
    assert value["choices"][0]["message"]["content"] == "Hello"
    assert value["choices"][0]["finish_reason"] == "length"
    assert value["usage"]["total_tokens"] == 5


def test_a_completion_without_usage() -> None:
    """Where an upstream tells no usage, none is made up."""
    value = json.loads(completion(text(), [Choice("Hello")], None))

    assert value["object"] == "text_completion"
    assert value["choices"][0]["text"] == "Hello"
    assert "usage" not in value


def test_a_chat_stream() -> None:
    """The role comes first, then text, the reason, the usage where it was asked for, the end."""
    writer = ChunkWriter(chat(stream=True, stream_options={"include_usage": True}))
    data = writer.text("Hel") + writer.text("") + writer.text("lo")
    data += writer.finish("stop") + writer.end(usage_of(3, 2))
    *chunks, last = events(data)

    assert last == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    first = {"role": "assistant", "content": ""}
    assert deltas == [first, {"content": "Hel"}, {"content": "lo"}, {}]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 5)


def test_a_text_stream() -> None:
    """A text stream has neither roles nor a usage that nobody asked for."""
    writer = ChunkWriter(text(stream=True))
    chunks = events(writer.text("Hi") + writer.finish("length") + writer.end(usage_of(1, 1)))

    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == ["Hi", ""]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


def test_what_asks_for_nothing_is_not_given() -> None:
    """Neutral values and the proxy's own fields are no parameters for an upstream."""
    asked = chat(n=1, stream=True, user="u", presence_penalty=0, tools=[], temperature=0.5).asked

    assert asked is not None
    assert given(asked) == {"temperature": 0.5}


@pytest.mark.parametrize("fields", [{"n": 2}, {"tools": [{}]}, {"logprobs": True}, {"frobs": 1}])
def test_what_is_not_supported_is_refused_or_dropped(fields: dict[str, Any]) -> None:
    """A parameter that the upstream lacks is refused by name, or left out where that is asked."""
    asked = chat(temperature=0.5, **fields).asked
    assert asked is not None
    supported = frozenset({"temperature"})

    with pytest.raises(InvalidRequest) as caught:
        checked(asked, supported, "refuse")
    assert (caught.value.param, caught.value.code) == (next(iter(fields)), "unsupported_parameter")
    assert checked(asked, supported, "drop") == {"temperature": 0.5}


def test_logprobs_of_nothing_but_the_drawn_token_are_asked_for() -> None:
    """A completion's `logprobs: 0` is a wish."""
    asked = text(logprobs=0).asked

    assert asked is not None
    assert given(asked) == {"logprobs": 0}
