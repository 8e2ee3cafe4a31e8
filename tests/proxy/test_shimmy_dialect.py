"""The `shimmy` dialect: pure functions, and a proxy in front of a stand-in for shimmy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIError, AsyncOpenAI, InternalServerError, NotFoundError

from openai_proxy.dialects.base import CHAT, COMPLETIONS, AnswerHead
from openai_proxy.dialects.shimmy import Path, ShimmyDialect
from tests.proxy.standin.shimmy_server import (
    FAILING,
    MODEL,
    TEXT,
    UNLOADABLE,
    ShimmyServer,
    chunk,
    raw_event,
)
from tests.proxy.translating import (
    CUTS,
    USAGE,
    answered,
    chat,
    ends,
    failure,
    fed,
    pieces,
    proxied,
    refusal,
    render,
    said,
    sent,
    text,
    usage,
)

DIALECT = ShimmyDialect()
GENERATE = ShimmyDialect("/api/generate")
DONE = b"data: [DONE]\n\n"
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize("path", ["/v1/chat-completion", "/v1/chat/completions", "/api/generate"])
def test_a_chat_goes_to_the_path_that_is_set(path: Path) -> None:
    """A chat goes to the set path, and always says whether it wants a stream."""
    dialect = ShimmyDialect(path)
    assert dialect.request(chat()).path == path
    messages = [{"role": "user", "content": "hi"}]
    assert sent(dialect, chat()) == {"model": "theirs", "messages": messages, "stream": False}
    assert sent(dialect, chat(stream=True))["stream"] is True


def test_text_goes_to_generate() -> None:
    """Only `/api/generate` completes text, in all releases; a server of chats alone has none."""
    assert DIALECT.request(text()).path == "/api/generate"
    body = {"model": "theirs", "prompt": "Say hi", "stream": False, "raw_prompt": True}
    assert sent(DIALECT, text()) == body
    assert DIALECT.endpoints == {CHAT, COMPLETIONS}
    assert ShimmyDialect("/v1/chat-completion").endpoints == {CHAT}


def test_messages_are_plain() -> None:
    """Contents become text: parts joined, nothing for null, which shimmy refuses."""
    messages = [
        {"role": "developer", "content": PARTS},
        {"role": "assistant", "content": None, "name": "x"},
        {"role": "user", "content": "hi"},
    ]
    assert sent(DIALECT, chat(messages=messages))["messages"] == [
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ({"role": "tool", "content": "x"}, ("messages[0]", "unsupported_value")),
        ({"role": "assistant", "tool_calls": [{}]}, ("messages[0]", "unsupported_value")),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            ("messages[0].content[0].type", "unsupported_value"),
        ),
        (
            {"role": "user", "content": [{"type": "text"}]},
            ("messages[0].content[0].text", "missing_required_parameter"),
        ),
    ],
)
def test_messages_that_are_not_text_are_refused(message: Any, refused: tuple[str, str]) -> None:
    """What shimmy would misread is refused, with its place."""
    assert refusal(DIALECT, chat(messages=[message])) == refused


@pytest.mark.parametrize(
    ("dialect", "fields", "parameters"),
    [
        (DIALECT, {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (DIALECT, {"stop": "END", "top_p": 0.5}, {"stop": "END", "top_p": 0.5}),
        (DIALECT, {"frequency_penalty": 1}, {"frequency_penalty": 1}),
        (GENERATE, {"top_k": 5, "temperature": 0}, {"top_k": 5, "temperature": 0}),
    ],
)
def test_parameters(
    dialect: ShimmyDialect, fields: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """What shimmy honours is sent, by the older name where there are two."""
    body = sent(dialect, chat(**fields))
    assert {
        name: body[name] for name in body.keys() - {"model", "messages", "stream"}
    } == parameters


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"tools": [{}]}),
        ("/v1/chat/completions", {"n": 2}),
        ("/v1/chat/completions", {"seed": 1}),
        ("/v1/chat/completions", {"logprobs": True}),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}),
        ("/v1/chat/completions", {"top_k": 5}),
        ("/api/generate", {"stop": "END"}),
        ("/api/generate", {"presence_penalty": 1}),
    ],
)
def test_what_it_ignores_is_refused_or_dropped(path: Path, fields: dict[str, Any]) -> None:
    """What shimmy would ignore without a word is refused by name, or left out where configured."""
    name = next(iter(fields))
    assert refusal(ShimmyDialect(path), chat(**fields)) == (name, "unsupported_parameter")
    assert name not in sent(ShimmyDialect(path, "drop"), chat(**fields))


def test_options_that_are_none() -> None:
    """Another path, and a template that nobody would use, stop the start."""
    other: Any = "/v1/chat"
    with pytest.raises(ValueError, match="path must be one of /v1/chat-completion, "):
        ShimmyDialect(other)
    with pytest.raises(ValueError, match="leave the chat template out"):
        ShimmyDialect(render=render)


def test_a_model_is_needed() -> None:
    """Shimmy does not do without a model's name."""
    call = chat()
    nameless = type(call)(call.path, b"", call.asked)
    assert refusal(DIALECT, nameless) == ("model", "missing_required_parameter")


@pytest.mark.parametrize("told", [{"prompt_tokens": 0, "completion_tokens": 7}, {}, None])
def test_an_answer(told: Any) -> None:
    """A whole chat has no usage where shimmy counted none."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hi"},
        "finish_reason": "stop",
    }
    value = answered(DIALECT, chat(), {"choices": [choice], "usage": told})
    assert value["choices"][0]["message"]["content"] == "Hi"
    assert value["model"] == "ours"
    assert "usage" not in value


def test_an_answer_that_counts() -> None:
    """Where a server at that path does count, its usage passes."""
    choice = {"message": {"content": "Hi"}, "finish_reason": "length"}
    told = {"prompt_tokens": 3, "completion_tokens": 1}
    value = answered(DIALECT, chat(), {"choices": [choice], "usage": told})
    assert value["choices"][0]["finish_reason"] == "length"
    assert value["usage"]["total_tokens"] == 4


def test_a_stream_that_counts() -> None:
    """Since 2.6 a chat's stream counts where it is asked to, and tells a limit."""
    asked = chat(**USAGE)
    assert sent(DIALECT, asked)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent(DIALECT, chat(stream=True))
    told = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    last = chunk({"role": None, "content": None}, "length")
    whole = last + b"data: " + json.dumps(told).encode() + b"\n\n" + DONE
    events, error = fed(DIALECT.stream(asked), whole)
    assert error is None
    assert (ends(events), usage(events), events[-1]) == (["length"], (3, 1), "[DONE]")


@given(CUTS)
def test_a_chat_ends_at_a_stop_string(cuts: list[int]) -> None:
    """shimmy sees stop strings of one token alone: the text ends at any, and not at half of one."""
    parts = [chunk({"role": None, "content": part}) for part in ("a EN", "b E", "ND c")]
    asked = chat(stream=True, stop=["END"])
    events, error = fed(DIALECT.stream(asked), *pieces(b"".join(parts), cuts))
    assert error is None
    assert (said(events), ends(events), events[-1]) == ("a ENb ", ["stop"], "[DONE]")
    last = chunk({"role": None, "content": None}, "length")
    events, _ = fed(DIALECT.stream(asked), *pieces(b"".join(parts[:2]) + last + DONE, cuts))
    assert (said(events), ends(events)) == ("a ENb E", ["length"])
    choice = {"message": {"content": "a ENb END c"}, "finish_reason": "length"}
    told = answered(DIALECT, chat(stop="END"), {"choices": [choice]})["choices"][0]
    assert (told["message"]["content"], told["finish_reason"]) == ("a ENb ", "stop")


def test_an_answer_of_generate_that_counts() -> None:
    """Since 2.6 a whole answer of `/api/generate` has its end and its usage."""
    told = {"response": "Hi", "finish_reason": "length"}
    counts = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    value = answered(DIALECT, text(), {**told, "usage": counts})
    assert value["choices"][0]["finish_reason"] == "length"
    assert value["usage"]["total_tokens"] == 4


def test_an_answer_of_generate() -> None:
    """The text of `/api/generate` becomes a chat's message, or a text."""
    value = answered(GENERATE, chat(), {"response": "Hi"})
    assert value["choices"][0]["message"]["content"] == "Hi"
    assert answered(DIALECT, text(), {"response": "Hi"})["choices"][0]["text"] == "Hi"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [7]}', b'{"response": 7}']
)
@pytest.mark.parametrize("dialect", [DIALECT, GENERATE])
def test_what_is_no_answer(dialect: ShimmyDialect, body: bytes) -> None:
    """What cannot be understood is a bad gateway."""
    assert failure(dialect, chat(), body)[:2] == (502, "upstream_invalid_response")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b"", (404, "model_not_found")),
        (404, b'{"error": {"message": "no", "code": 1}}', (404, "model_not_found")),
        (502, b"", (502, "upstream_error")),
        (422, b"Failed to deserialize", (422, "upstream_error")),
        (503, b"", (503, "upstream_error")),
    ],
)
def test_errors(status: int, body: bytes, expected: tuple[int, str]) -> None:
    """Errors without a body get a text and a code."""
    error = DIALECT.error(AnswerHead(status, ""), body)
    assert (error.status, error.code) == expected
    assert error.message


CHUNKS = b"".join(
    [
        chunk({"role": "assistant", "content": None}),
        chunk({"role": None, "content": "Hé"}),
        b"data: {}\n\n",
        chunk({"role": None, "content": "\n\n b"}),
        chunk({"role": None, "content": None}, "stop"),
    ]
)


@given(CUTS)
def test_any_cut_gives_the_same_chunks(cuts: list[int]) -> None:
    """However the network cuts a stream of chunks, they pass without nulls and with our model."""
    events, error = fed(DIALECT.stream(chat(**USAGE)), *pieces(CHUNKS + DONE, cuts))
    assert error is None
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    role = {"role": "assistant", "content": ""}
    assert deltas == [role, {"content": "Hé"}, {"content": "\n\n b"}, {}]
    assert (ends(events), usage(events), events[-1]) == (["stop"], None, "[DONE]")
    assert {event["model"] for event in events[:-1]} == {"ours"}


TOKENS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=6))


@given(TOKENS, CUTS)
def test_raw_text_comes_through(tokens: list[str], cuts: list[int]) -> None:
    """Any text comes through `/api/generate`: its newlines and spaces, however the network cuts."""
    tokens = [token for token in tokens if not token.startswith("[")]
    whole = b"".join(map(raw_event, tokens)) + DONE
    events, error = fed(GENERATE.stream(chat(**USAGE)), *pieces(whole, cuts))
    assert error is None
    assert (said(events), ends(events), usage(events)) == ("".join(tokens), ["stop"], None)


@pytest.mark.parametrize(
    ("event", "word"),
    [(b"data:  two\n\n", " two"), (b"data:none\n\n", "none"), (b"data: \ndata: \n\n", "\n")],
)
def test_exactly_one_space_is_stripped(event: bytes, word: str) -> None:
    """The one space after the colon is no text, a second one is."""
    events, _ = fed(GENERATE.stream(text(stream=True)), event + DONE)
    assert said(events) == word


@pytest.mark.parametrize("dialect", [DIALECT, GENERATE])
def test_an_error_under_200(dialect: ShimmyDialect) -> None:
    """`[ERROR] ...` ends a stream as a failure, and nobody reads what it says."""
    first = CHUNKS if dialect is DIALECT else raw_event("a")
    whole = first.partition(b"data: {}")[0] + raw_event("[ERROR] secret at 10.0.0.1") + DONE
    events, error = fed(dialect.stream(chat(stream=True)), whole)
    assert said(events)
    assert ends(events) == []
    assert error is not None
    assert (error.status, error.code) == (502, "upstream_error")
    assert "secret" not in error.message


def test_text_in_brackets_is_no_error() -> None:
    """A model may write brackets."""
    events, error = fed(
        GENERATE.stream(text(stream=True)), raw_event("[ERRORS]") + raw_event(" [DONE]") + DONE
    )
    assert (said(events), error) == ("[ERRORS] [DONE]", None)


@pytest.mark.parametrize(
    ("dialect", "whole"),
    [
        (DIALECT, CHUNKS.partition(b"data: {}")[0]),
        (DIALECT, chunk({"content": "a"}) + DONE),
        (DIALECT, chunk({"content": "a"}) + b"data: {\n\n"),
        (GENERATE, raw_event("a")),
        (GENERATE, raw_event("a") + b"data: \xff\n\n"),
        (GENERATE, b"<html>\n\n"),
        (GENERATE, b""),
    ],
)
def test_a_stream_without_its_end_is_broken(dialect: ShimmyDialect, whole: bytes) -> None:
    """A stream that just ends is broken."""
    _, error = fed(dialect.stream(chat(stream=True)), whole)
    assert error is not None
    assert error.code == "upstream_stream_broken"


def test_a_chat_without_its_mark_is_whole() -> None:
    """Where the finish reason came, nothing but the mark is missing."""
    events, error = fed(DIALECT.stream(chat(stream=True)), CHUNKS)
    assert (said(events), ends(events), error) == ("Hé\n\n b", ["stop"], None)


def test_models() -> None:
    """All lists of models that shimmy knows are understood."""
    assert DIALECT.models(b'{"data": [{"id": "a"}, 7]}') == ("a",)
    assert DIALECT.models(b'{"models": [{"name": "a"}, {"name": 1}]}') == ("a",)
    assert DIALECT.models(b'{"data": []}') == ()
    assert DIALECT.models(b"{}") is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/generate"])
async def test_a_client_of_shimmy(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """OpenAI's own client gets chats, streams and errors from shimmy, whichever path is set."""
    server = ShimmyServer()
    async with (
        proxied(monkeypatch, ShimmyDialect(path), server.app()) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client,
    ):
        assert (await proxy.get("/health"))[1]["backend"]["models"] == [MODEL]
        ask = client.chat.completions.create
        messages: Any = [{"role": "assistant", "content": None}, {"role": "user", "content": "hi"}]
        answer = await ask(model=MODEL, messages=messages)
        assert (answer.choices[0].message.content, answer.usage) == (TEXT, None)
        assert server.seen[-1][0] == path

        stream = await ask(model=MODEL, messages=messages, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
        texts = await client.completions.create(model=MODEL, prompt="x", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in texts]) == TEXT

        with pytest.raises(NotFoundError) as unknown:
            await ask(model="other", messages=messages)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(InternalServerError) as unloadable:
            await ask(model=UNLOADABLE, messages=messages)
        assert (unloadable.value.status_code, unloadable.value.code) == (502, "upstream_error")

        broken = await client.completions.create(model=FAILING, prompt="x", stream=True)
        with pytest.raises(APIError) as failed:
            _ = [chunk async for chunk in broken]
        assert failed.value.code == "upstream_error"
        assert "secret" not in str(failed.value)
