"""The `sglang` dialect: pure functions, and a proxy in front of a stand-in for SGLang."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from openai import APIError, AsyncOpenAI, BadRequestError

from openai_proxy.dialects.base import AnswerHead
from openai_proxy.dialects.sglang import SglangDialect
from tests.proxy.standin.sglang_server import ABORTED, MODEL, TEXT, TOO_LONG, SglangServer, event
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

DIALECT = SglangDialect(render)
DONE = b"data: [DONE]\n\n"
ARRAY = {"type": "array"}
STOPPED = {"type": "stop", "matched": 2}


def result(text: str, reason: Any = None, **more: Any) -> dict[str, Any]:
    """What SGLang says of a choice."""
    meta = {"id": "x", "finish_reason": reason, "prompt_tokens": 4, "completion_tokens": 2}
    return {"text": text, "meta_info": {**meta, "cached_tokens": 3}, **more}


def aborted(**more: Any) -> dict[str, Any]:
    """What SGLang says of a choice that failed."""
    return result("", {"type": "abort", **more})


def test_a_chat_is_rendered() -> None:
    """A chat becomes one text; where no limit is asked for, none is set."""
    assert sent(DIALECT, chat()) == {
        "text": "<user>hi<assistant>",
        "sampling_params": {"max_new_tokens": None},
        "stream": False,
    }
    assert DIALECT.request(chat()).path == "/generate"
    assert refusal(SglangDialect(), chat()) == ("messages", "no_chat_template")


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a", {"text": "a"}),
        (["a"], {"text": "a"}),
        (["a", "b"], {"text": ["a", "b"]}),
        ([1, 2], {"input_ids": [1, 2]}),
        ([[1, 2], [3]], {"input_ids": [[1, 2], [3]]}),
    ],
)
def test_prompts(prompt: Any, asked: dict[str, Any]) -> None:
    """Prompts are texts or token ids, one or several."""
    body = sent(DIALECT, text(prompt=prompt))
    assert {name: body[name] for name in body if name in ("text", "input_ids")} == asked


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"max_tokens": 5, "n": 2, "seed": 7}, {"max_new_tokens": 5, "n": 2, "sampling_seed": 7}),
        ({"temperature": 0, "top_p": 1, "top_k": 0}, {"temperature": 0, "top_p": 1, "top_k": -1}),
        ({"min_tokens": 2, "ignore_eos": True}, {"min_new_tokens": 2, "ignore_eos": True}),
        ({"stop": "END", "stop_token_ids": [7]}, {"stop": ["END"], "stop_token_ids": [7]}),
        ({"include_stop_str_in_output": True}, {"no_stop_trim": True}),
        ({"logit_bias": {"5": -1}}, {"logit_bias": {"5": -1}}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"ebnf": 'root ::= "a"'}, {"ebnf": 'root ::= "a"'}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": '{"type":"object"}'}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": ARRAY}}},
            {"json_schema": '{"type":"array"}'},
        ),
    ],
)  # fmt: skip
def test_parameters(fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    """Parameters get SGLang's names; a schema is sent as text."""
    assert sent(DIALECT, chat(**fields))["sampling_params"] == {"max_new_tokens": None, **sampling}


@pytest.mark.parametrize("name", ["tools", "priority", "typical_p", "reasoning_effort"])
def test_what_it_cannot_do_is_refused_or_dropped(name: str) -> None:
    """What SGLang's own API cannot do is refused by its name, or left out where configured."""
    value = {"tools": [{}], "reasoning_effort": "low"}.get(name, 1)
    call = chat(**{name: 0.5 if name == "typical_p" else value})
    assert refusal(DIALECT, call) == (name, "unsupported_parameter")
    assert sent(SglangDialect(render, "drop"), call)["sampling_params"] == {"max_new_tokens": None}


def test_too_many_texts_are_refused() -> None:
    """Choices of several prompts multiply: more than a server should be sent are refused."""
    assert refusal(DIALECT, text(prompt=["a", "b"], n=65)) == ("n", "invalid_value")


def test_options() -> None:
    """An option may be text, as an environment variable's is; a bad one stops the start."""
    with pytest.raises(ValueError, match="stream_output must be one of true, false"):
        SglangDialect(stream_output="maybe")


def test_an_answer() -> None:
    """A whole answer has its text, its reason and the usage, cached tokens included."""
    value = answered(DIALECT, chat(), result("Hello", {"type": "length", "length": 2}))
    assert value["choices"][0]["message"]["content"] == "Hello"
    assert value["choices"][0]["finish_reason"] == "length"
    assert value["usage"]["total_tokens"] == 6
    assert value["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


def test_several_choices() -> None:
    """Choices come in the order of prompts, then samples; a prompt's tokens count once."""
    call = text(prompt=["p", "q"], n=2)
    value = answered(DIALECT, call, [result(word, STOPPED) for word in ("a", "b", "c", "d")])
    assert [choice["text"] for choice in value["choices"]] == ["a", "b", "c", "d"]
    assert [choice["index"] for choice in value["choices"]] == [0, 1, 2, 3]
    assert (value["usage"]["prompt_tokens"], value["usage"]["completion_tokens"]) == (8, 8)


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [
        ([], 502, "upstream_invalid_response"),
        ([result("a"), result("b")], 502, "upstream_invalid_response"),
        ({"text": None}, 502, "upstream_invalid_response"),
        ([7], 502, "upstream_invalid_response"),
        ({"error": {"message": "too long"}}, 400, "upstream_error"),
        (aborted(message="secret", status_code=500), 502, "upstream_error"),
        (aborted(message="secret"), 502, "upstream_error"),
        (aborted(message="full", status_code=503), 503, "upstream_error"),
    ],
)  # fmt: skip
def test_what_is_no_answer(value: Any, status: int, code: str) -> None:
    """What cannot be understood is a bad gateway, as is a request that failed inside."""
    assert failure(DIALECT, chat(), json.dumps(value).encode())[:2] == (status, code)
    assert "secret" not in failure(DIALECT, chat(), json.dumps(value).encode())[2]


@pytest.mark.parametrize(
    ("status", "body", "expected", "text"),
    [
        (400, b'{"error": {"message": "too long"}}', (400, "upstream_error"), "too long"),
        (
            400,
            b'{"object": "error", "message": "bad", "code": 400}',
            (400, "upstream_error"),
            "bad",
        ),
        (503, b'{"object": "error", "message": "secret"}', (503, "upstream_error"), "available"),
        (500, b"Internal Server Error", (502, "upstream_error"), "failed"),
        (404, b"", (404, "upstream_error"), "HTTP 404"),
    ],
)
def test_errors(status: int, body: bytes, expected: tuple[int, str], text: str) -> None:
    """Half an envelope is made whole; what fails inside says no more."""
    error = DIALECT.error(AnswerHead(status, "application/json"), body)
    assert (error.status, error.code) == expected
    assert text in error.message
    assert set(json.loads(error.body())["error"]) == {"message", "type", "param", "code"}


GROWN = b"".join(
    event(result(so_far, reason))
    for so_far, reason in (
        ("Hé", None), ("Hé \ufffd", None), ("Hé ü", None), ("Hé ü E", None), ("Hé ü EN", None),
        ("Hé ü ", {"type": "stop", "matched": "END"}),
    )
)  # fmt: skip


@given(CUTS)
def test_any_cut_gives_the_same_stream(cuts: list[int]) -> None:
    """However the network cuts a stream, text is sent once, half characters and stops never."""
    parser = DIALECT.stream(chat(stop="END", **USAGE))
    events, error = fed(parser, *pieces(GROWN + DONE, cuts))
    assert error is None
    texts = [choice["choices"][0]["delta"].get("content") for choice in events[:-2]]
    assert texts == ["", "Hé", " ", "ü", " ", None]
    assert (ends(events), usage(events), events[-1]) == (["stop"], (4, 2), "[DONE]")


def test_choices_come_mixed() -> None:
    """Each choice of a stream has its own text and its own end."""
    parts = [("a", 0, None), ("x", 1, None), ("xy", 1, STOPPED), ("ab", 0, STOPPED)]
    whole = b"".join(event(result(so_far, reason, index=index)) for so_far, index, reason in parts)
    events, error = fed(DIALECT.stream(text(n=2, **USAGE)), whole + DONE)
    assert error is None
    assert [said(events, index) for index in (0, 1)] == ["ab", "xy"]
    assert [ends(events, index) for index in (0, 1)] == [["stop"], ["stop"]]
    assert usage(events) == (4, 4)


def test_a_server_that_sends_what_is_new() -> None:
    """Where the server is set so, its texts are parts; else these contradict each other."""
    whole = event(result("Hé")) + event(result(" ü")) + event(result("!", STOPPED)) + DONE
    events, error = fed(SglangDialect(stream_output="true").stream(text(stream=True)), whole)
    assert (said(events), error) == ("Hé ü!", None)
    _, error = fed(DIALECT.stream(text(stream=True)), whole)
    assert error is not None
    assert error.code == "upstream_stream_broken"


def test_a_stream_without_its_mark_is_whole() -> None:
    """Where every choice has its finish reason, nothing but the mark is missing."""
    events, error = fed(DIALECT.stream(chat(stream=True)), event(result("a", STOPPED)))
    assert (said(events), ends(events), events[-1], error) == ("a", ["stop"], "[DONE]", None)


@pytest.mark.parametrize(
    "broken",
    [b"", DONE, b"data: {\n\n", b"data: []\n\n", event({"text": 7}), event(result("b", index=9))],
)
def test_a_stream_without_its_end_is_broken(broken: bytes) -> None:
    """A choice without a finish reason is not whole, `[DONE]` or not."""
    events, error = fed(DIALECT.stream(chat(stream=True)), event(result("a")), broken)
    assert said(events) == "a"
    assert ends(events) == []
    assert error is not None
    assert error.code == "upstream_stream_broken"


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"error": {"message": "some text"}}, 400),
        ({"error": {"message": "some text", "code": 503}}, 503),
        (aborted(message="some text", status_code=400), 400),
        (aborted(message="some text", status_code=None), 502),
    ],
)
def test_an_error_in_mid_stream(told: Any, status: int) -> None:
    """An error event and an aborted request end the stream with what they say."""
    events, error = fed(DIALECT.stream(chat(stream=True)), event(result("a")) + event(told) + DONE)
    assert said(events) == "a"
    assert error is not None
    assert (error.status, error.code) == (status, "upstream_error")


def test_models() -> None:
    """Models are OpenAI's list, or the one path that a server tells."""
    assert DIALECT.models(b'{"data": [{"id": "a"}, 7, {"id": "b"}]}') == ("a", "b")
    assert DIALECT.models(b'{"model_path": "a/b", "is_generation": true}') == ("a/b",)
    assert DIALECT.models(b"{}") is None
    assert DIALECT.models(b"[]") is None


async def test_a_client_of_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's own client gets chats, streams, several choices and errors from SGLang."""
    server = SglangServer()
    async with (
        proxied(monkeypatch, DIALECT, server.app()) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client,
    ):
        assert (await proxy.get("/health"))[1]["backend"]["models"] == [MODEL]
        answer = await client.completions.create(model=MODEL, prompt=["a", "b"], n=2, seed=7)
        assert [choice.text for choice in answer.choices] == [TEXT] * 4

        ask = client.chat.completions.create
        hi: Any = [{"role": "user", "content": "hi"}]
        stream = await ask(model=MODEL, messages=hi, stream=True, stop=["END"], n=2)
        words = ["", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                words[choice.index] += choice.delta.content or ""
        assert words == ["Hello é ", "Hello é "]

        with pytest.raises(BadRequestError, match="longer than the model's context"):
            await ask(model=MODEL, messages=[{"role": "user", "content": TOO_LONG}], stream=True)
        broken = await ask(
            model=MODEL, messages=[{"role": "user", "content": ABORTED}], stream=True
        )
        with pytest.raises(APIError) as failed:
            _ = [chunk async for chunk in broken]
        assert failed.value.code == "upstream_error"
        assert "secret" not in str(failed.value)
