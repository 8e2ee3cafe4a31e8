"""The `ollama` dialect: pure functions, and a proxy in front of a stand-in for Ollama."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from openai import APIError, AsyncOpenAI, InternalServerError, NotFoundError

from openai_proxy.dialects.base import AnswerHead
from openai_proxy.dialects.ollama import OllamaDialect
from tests.proxy.standin.ollama_server import BUSY, FAILING, MODEL, WORDS, OllamaServer
from tests.proxy.translating import (
    CUTS,
    USAGE,
    answered,
    chat,
    choices,
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

DIALECT = OllamaDialect()
ARRAY = {"type": "array"}
PNG = base64.b64encode(b"\x89PNG....").decode()
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"function": {"name": "weather", "arguments": {"city": "Ulm"}}}
FIGURES = {"prompt_eval_count": 11, "eval_count": 3, "total_duration": 5}


def line(content: str = "", **message: Any) -> bytes:
    """A line in mid-stream."""
    said = {"role": "assistant", "content": content, **message}
    return json.dumps({"model": "theirs", "message": said, "done": False}).encode() + b"\n"


def last(reason: str = "stop", **more: Any) -> bytes:
    """The line that ends a stream."""
    said = {"role": "assistant", "content": ""}
    return json.dumps({"message": said, "done": True, "done_reason": reason, **more}).encode()


def test_a_chat() -> None:
    """A chat goes to `/api/chat`, and always says whether it wants a stream."""
    assert sent(DIALECT, chat()) == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
    }
    assert DIALECT.request(chat()).path == "/api/chat"
    assert sent(DIALECT, chat(stream=True))["stream"] is True


def test_a_text() -> None:
    """A text completion is not put into the model's template, unless it has a suffix."""
    body = {"model": "theirs", "prompt": "Say hi", "stream": False}
    assert sent(DIALECT, text()) == {**body, "raw": True}
    assert sent(DIALECT, text(suffix="end")) == {**body, "suffix": "end"}
    assert DIALECT.request(text()).path == "/api/generate"


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"num_predict": 7}),
        ({"temperature": 0, "top_p": 1, "seed": 7}, {"temperature": 0, "top_p": 1, "seed": 7}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"top_k": -1, "min_p": 0.1}, {"top_k": 0, "min_p": 0.1}),
        ({"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
        ({"presence_penalty": 1, "typical_p": 0.5}, {"presence_penalty": 1, "typical_p": 0.5}),
    ],
)
def test_options(fields: dict[str, Any], options: dict[str, Any]) -> None:
    """Parameters become options under Ollama's names, beside the context's configured length."""
    assert sent(DIALECT, chat(**fields))["options"] == options
    dialect = OllamaDialect(num_ctx="8192")
    assert sent(dialect, chat(**fields))["options"] == {"num_ctx": 8192, **options}


@pytest.mark.parametrize(("configured", "kept"), [("5m", "5m"), ("-1", -1), ("30", 30)])
def test_keep_alive(configured: str, kept: str | int) -> None:
    """For how long a model stays loaded is sent as Ollama reads it: seconds as a number."""
    assert sent(OllamaDialect(keep_alive=configured), text())["keep_alive"] == kept


def test_nothing_is_cut() -> None:
    """Where that is configured, Ollama is asked not to cut what is too long for its context."""
    body = sent(OllamaDialect(truncate="false"), chat())
    assert (body["truncate"], body["shift"]) == (False, False)
    assert sent(OllamaDialect(truncate=True), chat()).keys() == {"model", "messages", "stream"}


def test_options_that_are_none() -> None:
    """A bad option, and a template that nobody would use, stop the start."""
    with pytest.raises(ValueError, match="num_ctx must be a whole number"):
        OllamaDialect(num_ctx="many")
    with pytest.raises(ValueError, match="leave the chat template out"):
        OllamaDialect(render=render)


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"response_format": {"type": "json_object"}}, {"format": "json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": ARRAY}}},
            {"format": {"type": "array"}},
        ),
        ({"reasoning_effort": "low"}, {"think": "low"}),
        ({"reasoning_effort": "none"}, {"think": False}),
        ({"reasoning_effort": "max"}, {"think": "max"}),
        ({"think": True}, {"think": True}),
        ({"tools": [TOOL]}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
    ],
)  # fmt: skip
def test_the_form_of_an_answer(fields: dict[str, Any], form: dict[str, Any]) -> None:
    """Schemas, thoughts and tools have fields of their own."""
    body = sent(DIALECT, chat(**fields))
    assert {name: body[name] for name in body.keys() - {"model", "messages", "stream"}} == form


def test_messages() -> None:
    """Texts are joined, images taken out, tool calls and their results given Ollama's form."""
    url = {"url": f"data:image/png;base64,{PNG}"}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What"},
                {"type": "image_url", "image_url": url},
                {"type": "text", "text": " is it?"},
                {"type": "image_url", "image_url": f"data:;base64,{PNG}"},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
        {"role": "tool", "content": "8", "name": "g"},
    ]
    made = {"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}
    assert sent(DIALECT, chat(messages=messages))["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is it?", "images": [PNG, PNG]},
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [made]},
        {"role": "tool", "content": "7", "tool_name": "f", "tool_call_id": "c1"},
        {"role": "tool", "content": "8", "tool_name": "g"},
    ]


def part(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [fields]}


def calling(function: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "c", "function": function}]}


AT = "messages[0].content[0]"
FUNCTION = "messages[0].tool_calls[0].function"


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        (part(type="image_url"), (f"{AT}.image_url.url", "missing_required_parameter")),
        (
            part(type="image_url", image_url={"url": "http://10.0.0.1/x.png"}),
            (f"{AT}.image_url.url", "unsupported_value"),
        ),
        (
            part(type="image_url", image_url={"url": "data:image/png;base64,&&"}),
            (f"{AT}.image_url.url", "invalid_value"),
        ),
        (
            part(type="image_url", image_url={"url": "data:image/png;base64,\u00e4"}),
            (f"{AT}.image_url.url", "invalid_value"),
        ),
        (part(type="input_audio", input_audio={}), (f"{AT}.type", "unsupported_value")),
        (part(type="text"), (f"{AT}.text", "missing_required_parameter")),
        (calling(7), (f"{FUNCTION}.name", "missing_required_parameter")),
        (calling({"name": "f", "arguments": "["}), (f"{FUNCTION}.arguments", "invalid_value")),
        (calling({"name": "f", "arguments": "[1]"}), (f"{FUNCTION}.arguments", "invalid_value")),
        (
            {"role": "assistant", "tool_calls": {"a": 1}},
            ("messages[0].tool_calls", "invalid_type"),
        ),
    ],
)
def test_messages_that_it_cannot_take(message: Any, refused: tuple[str, str]) -> None:
    """A message that Ollama would misread is refused, with the place that is wrong."""
    assert refusal(DIALECT, chat(messages=[message])) == refused


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"n": 2}, ("n", "unsupported_parameter")),
        ({"logit_bias": {"1": 1}}, ("logit_bias", "unsupported_parameter")),
        (
            {"tools": [TOOL], "tool_choice": "required"},
            ("tool_choice", "unsupported_parameter"),
        ),
        ({"tools": {"a": 1}}, ("tools", "invalid_type")),
        ({"tools": [TOOL, {}]}, ("tools[1].function.name", "missing_required_parameter")),
        ({"reasoning_effort": "much"}, ("reasoning_effort", "invalid_value")),
        ({"reasoning_effort": ["low"]}, ("reasoning_effort", "invalid_value")),
        ({"think": 7}, ("think", "invalid_type")),
    ],
)
def test_what_it_cannot_do_is_refused(fields: dict[str, Any], refused: tuple[str, str]) -> None:
    """What Ollama cannot do, or would misread, is refused by its name."""
    assert refusal(DIALECT, chat(**fields)) == refused


def test_what_it_cannot_do_is_dropped() -> None:
    """Where that is configured, what Ollama cannot do is left out."""
    body = sent(OllamaDialect("drop"), chat(n=2, tools=[TOOL], tool_choice="required"))
    assert body.keys() == {"model", "messages", "stream", "tools"}


def test_an_answer() -> None:
    """A whole chat has its thoughts, its reason and its usage."""
    said = {"role": "assistant", "content": "Hi", "thinking": "Hm."}
    value = {"message": said, "done": True, "done_reason": "length", **FIGURES}
    made = answered(DIALECT, chat(), value)
    message = made["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hi", "Hm.")
    assert made["choices"][0]["finish_reason"] == "length"
    assert (made["usage"]["prompt_tokens"], made["usage"]["completion_tokens"]) == (11, 3)


def test_an_answer_with_tool_calls() -> None:
    """Tool calls have ids, kept or made, and their arguments as text."""
    said = {"role": "assistant", "content": "", "tool_calls": [CALL, {"id": "c7", **CALL}]}
    made = answered(DIALECT, chat(), {"message": said, "done": True, "done_reason": "stop"})
    choice = made["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    first, second = choice["message"]["tool_calls"]
    assert first == {
        "id": "call_1_0",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Ulm"}'},
    }
    assert second["id"] == "c7"


def test_cached_tokens_of_a_prompt() -> None:
    """Newer releases tell how many of a prompt's tokens were cached."""
    value = {"response": "Hi", "done": True, "prompt_eval_cached_count": 8, **FIGURES}
    made = answered(DIALECT, text(), value)
    assert made["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}


def test_an_answer_that_was_cached() -> None:
    """Where Ollama tells no prompt tokens (older ones, of cached prompts), no usage is told."""
    value = {"response": "Hi", "done": True, "done_reason": "stop", "eval_count": 3}
    made = answered(DIALECT, text(), value)
    assert made["choices"][0]["text"] == "Hi"
    assert "usage" not in made


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "upstream_invalid_response"),
        (b"[]", "upstream_invalid_response"),
        (b'{"done": true}', "upstream_invalid_response"),
        (b'{"message": {"content": "Hi"}, "done": false}', "upstream_invalid_response"),
        (b'{"error": "secret"}', "upstream_error"),
    ],
)
def test_what_is_no_answer(body: bytes, code: str) -> None:
    """What cannot be understood, or is not all, is a bad gateway."""
    assert failure(DIALECT, chat(), body)[:2] == (502, code)
    assert "secret" not in failure(DIALECT, chat(), body)[2]


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (404, "model 'x' not found", (404, "model_not_found")),
        (400, '"x" does not support thinking', (400, "upstream_error")),
        (400, "the input length exceeds the context length", (400, "context_length_exceeded")),
        (
            400,
            "request (40000 tokens) exceeds the available context size (4096 tokens)",
            (400, "context_length_exceeded"),
        ),
        (503, "server busy, please try again: secret", (503, "upstream_error")),
        (500, "model requires more system memory: secret", (502, "upstream_error")),
    ],
)
def test_errors(status: int, text: str, expected: tuple[int, str]) -> None:
    """An unknown model is 404, an overload 503; what fails inside says no more."""
    error = DIALECT.error(AnswerHead(status, ""), json.dumps({"error": text}).encode())
    assert (error.status, error.code) == expected
    assert "secret" not in error.message


STREAM = line(thinking="Hm.") + line("Hé") + b"\n" + line("llo") + last(**FIGURES) + b"\n"


@given(CUTS)
def test_any_cut_gives_the_same_stream(cuts: list[int]) -> None:
    """However the network cuts the lines, the same events come out, thoughts in their own field."""
    events, error = fed(DIALECT.stream(chat(**USAGE)), *pieces(STREAM, cuts))
    assert error is None
    thoughts = [choice["delta"].get("reasoning_content") for choice in choices(events)]
    assert [thought for thought in thoughts if thought] == ["Hm."]
    assert (said(events), ends(events), usage(events)) == ("Héllo", ["stop"], (11, 3))
    assert events[-1] == "[DONE]"


def test_a_stream_of_tool_calls() -> None:
    """Tool calls are counted through the stream, whatever Ollama counts, and are why it ends."""
    first = {"function": {**CALL["function"], "index": 0, "arguments": '{"city": "Ulm"}'}}
    whole = line(tool_calls=[first]) + line(tool_calls=[first]) + last()
    events, error = fed(DIALECT.stream(chat(stream=True)), whole)
    assert error is None
    calls = [call for choice in choices(events) for call in choice["delta"].get("tool_calls", [])]
    assert [(call["index"], call["id"]) for call in calls] == [(0, "call_1_0"), (1, "call_1_1")]
    assert {call["function"]["arguments"] for call in calls} == {'{"city": "Ulm"}'}
    assert ends(events) == ["tool_calls"]


def test_text_in_the_last_line() -> None:
    """What Ollama held back, since it could have become a tool call, comes with the end."""
    end = {"message": {"content": "{}"}, "done": True, "done_reason": "stop"}
    whole = line("a") + json.dumps(end).encode() + b"\n"
    events, error = fed(DIALECT.stream(chat(stream=True, tools=[TOOL])), whole)
    assert (said(events), ends(events), error) == ("a{}", ["stop"], None)


def test_a_stream_of_text() -> None:
    """A text completion streams from `/api/generate`; its last line needs no newline."""
    whole = b'{"response":"a","done":false}\n{"response":"b","done":true,"done_reason":"length"}'
    events, error = fed(DIALECT.stream(text(stream=True)), whole)
    assert (said(events), ends(events), error) == ("ab", ["length"], None)


@pytest.mark.parametrize(
    "broken",
    [b"", b"{\n", b"[]\n", b'{"done": false}\n', b"<html>\n", last()[:-5], b"x" * 9_000_000],
)
def test_a_stream_without_its_end_is_broken(broken: bytes) -> None:
    """A stream that just ends, or goes on as something else, is broken."""
    events, error = fed(DIALECT.stream(chat(stream=True)), line("a"), broken)
    assert said(events) == "a"
    assert ends(events) == []
    assert error is not None
    assert error.code == "upstream_stream_broken"


def test_an_error_in_mid_stream() -> None:
    """A line with an error, under 200, ends the stream as a failure of which no text is told."""
    whole = line("a") + b'{"error":"secret"}\n' + line("b")
    events, error = fed(DIALECT.stream(chat(stream=True)), whole)
    assert said(events) == "a"
    assert error is not None
    assert (error.status, error.code) == (502, "upstream_error")
    assert "secret" not in error.message


def test_models() -> None:
    """Models are listed with their tags; where none was pulled, none is ready."""
    assert DIALECT.models(b'{"models": [{"name": "a:1"}, {"model": "b:2"}, 7]}') == ("a:1", "b:2")
    assert DIALECT.models(b'{"models": []}') == ()
    assert DIALECT.models(b'{"models": null}') is None


async def test_a_client_of_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's own client gets chats, tool calls, thoughts, streams and errors from Ollama."""
    server = OllamaServer()
    async with (
        proxied(monkeypatch, DIALECT, server.app()) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client,
    ):
        assert (await proxy.get("/health"))[1]["backend"]["models"] == [MODEL]
        ask = client.chat.completions.create
        hi: Any = [{"role": "user", "content": "hi"}]
        answer = await ask(model=MODEL, messages=hi, max_tokens=2)
        assert answer.choices[0].message.content == "".join(WORDS[:2])
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 11

        tools: Any = [TOOL]
        answer = await ask(model=MODEL, messages=hi, tools=tools, reasoning_effort="high")
        calls: Any = answer.choices[0].message.tool_calls
        assert json.loads(calls[0].function.arguments) == {"city": "Ulm", "days": 2}
        assert answer.choices[0].message.model_extra == {"reasoning_content": "Hm."}

        stream = await ask(
            model=MODEL, messages=hi, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        words = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(words) == "".join(WORDS)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 14
        texts = await client.completions.create(model=MODEL, prompt="x", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in texts]) == "".join(WORDS)

        with pytest.raises(NotFoundError) as unknown:
            await ask(model="other", messages=hi)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(InternalServerError) as busy:
            await ask(model=BUSY, messages=hi, stream=True)
        assert busy.value.status_code == 503
        broken = await ask(model=FAILING, messages=hi, stream=True)
        with pytest.raises(APIError) as failed:
            _ = [chunk async for chunk in broken]
        assert failed.value.code == "upstream_error"
        assert "secret" not in str(failed.value)
