"""The `tgi` dialect: pure functions, and a proxy in front of a stand-in for TGI."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from openai import APIError, AsyncOpenAI, BadRequestError, RateLimitError

from openai_proxy.dialects.base import AnswerHead, Call
from openai_proxy.dialects.tgi import TgiDialect
from tests.proxy.standin.tgi_server import (
    FAILING,
    KEEP_ALIVE,
    MODEL,
    OVERLOADED,
    TgiServer,
    event,
    token,
)
from tests.proxy.translating import (
    CUTS,
    OK,
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

DIALECT = TgiDialect(render)
BASE = {"max_new_tokens": None, "details": True, "return_full_text": False, "do_sample": True}


def stream(*words: str, reason: str = "eos_token", **details: Any) -> bytes:
    """A whole stream of TGI's; its last word comes with the end."""
    told = {"finish_reason": reason, "generated_tokens": len(words), "input_length": 9, **details}
    last = token(words[-1]) | {"generated_text": "".join(words), "details": told}
    return KEEP_ALIVE + b"".join(map(event, [*map(token, words[:-1]), last]))


def test_a_chat_is_rendered() -> None:
    """A chat becomes one input, and samples as OpenAI does where nothing is said."""
    assert sent(DIALECT, chat()) == {"inputs": "<user>hi<assistant>", "parameters": BASE}
    assert DIALECT.request(chat()).path == "/generate"
    assert DIALECT.request(chat(stream=True)).path == "/generate_stream"


def test_a_chat_without_a_template() -> None:
    """Without a template a chat is refused, a text completion is not."""
    assert refusal(TgiDialect(), chat()) == ("messages", "no_chat_template")
    assert sent(TgiDialect(), text())["inputs"] == "Say hi"


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_new_tokens": 7}),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 3},
            {"temperature": 0.5, "top_p": 0.9, "top_k": 3},
        ),
        ({"top_p": 1, "top_k": -1, "typical_p": 1.0}, {}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 5}, {"do_sample": False}),
        ({"temperature": 0.0}, {"do_sample": False}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"stop": "END"}, {"stop": ["END"]}),
        (
            {"frequency_penalty": 1, "repetition_penalty": 1.1},
            {"frequency_penalty": 1, "repetition_penalty": 1.1},
        ),
        ({"regex": "a+"}, {"grammar": {"type": "regex", "value": "a+"}}),
    ],
)
def test_parameters(fields: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Parameters get TGI's names; what would be an error to it and asks for nothing is left out."""
    assert sent(DIALECT, chat(**fields))["parameters"] == BASE | parameters


def test_a_schema_is_a_grammar() -> None:
    """A JSON schema becomes a grammar."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    grammar = sent(DIALECT, chat(response_format=form))["parameters"]["grammar"]
    assert grammar == {"type": "json", "value": schema}


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"n": 2}, ("n", "unsupported_parameter")),
        ({"tools": [{"type": "function"}]}, ("tools", "unsupported_parameter")),
        ({"logit_bias": {"1": 1}}, ("logit_bias", "unsupported_parameter")),
        ({"presence_penalty": 0.5}, ("presence_penalty", "unsupported_parameter")),
        ({"stop": ["a", "b", "c", "d", "e"]}, ("stop", "array_above_max_length")),
        ({"response_format": {"type": "json_object"}}, ("response_format", "unsupported_value")),
        ({"response_format": {"type": "yaml"}}, ("response_format", "invalid_value")),
        ({"response_format": 7}, ("response_format", "invalid_value")),
        ({"regex": 7}, ("regex", "invalid_type")),
        (
            {"regex": "a", "response_format": {"type": "json_object"}},
            ("regex", "invalid_value"),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            ("response_format.json_schema.schema", "missing_required_parameter"),
        ),
    ],
)
def test_what_it_cannot_do_is_refused(fields: dict[str, Any], refused: tuple[str, str]) -> None:
    """What TGI cannot do is refused by its name."""
    assert refusal(DIALECT, chat(**fields)) == refused


def test_what_it_cannot_do_is_dropped() -> None:
    """Where that is configured, what TGI cannot do is left out."""
    dialect = TgiDialect(render, unsupported="drop")
    call = chat(n=2, logit_bias={"1": 1}, response_format={"type": "json_object"})
    assert sent(dialect, call)["parameters"] == BASE


@pytest.mark.parametrize(
    ("prompt", "code"),
    [(["a", "b"], "unsupported_value"), ([1, 2], "unsupported_value"), ("", "empty_prompt")],
)
def test_one_text_is_taken(prompt: Any, code: str) -> None:
    """Several prompts, token ids and no text are refused."""
    assert refusal(DIALECT, text(prompt=prompt)) == ("prompt", code)


def test_an_answer() -> None:
    """A whole answer has the text without its stop string; the head tells the prompt's tokens."""
    details = {"finish_reason": "stop_sequence", "generated_tokens": 3, "prefill": []}
    body = json.dumps({"generated_text": "Hello END", "details": details}).encode()
    head = AnswerHead(200, "application/json", headers={"x-prompt-tokens": "9"})
    value = json.loads(DIALECT.answer(chat(stop="END"), head, body))

    assert value["choices"][0]["message"]["content"] == "Hello "
    assert value["choices"][0]["finish_reason"] == "stop"
    assert (value["usage"]["prompt_tokens"], value["usage"]["completion_tokens"]) == (9, 3)
    assert value["model"] == "ours"
    assert "usage" not in json.loads(DIALECT.answer(chat(), OK, body))


@pytest.mark.parametrize(("reason", "finish"), [("length", "length"), ("eos_token", "stop")])
def test_finish_reasons(reason: str, finish: str) -> None:
    """Both of TGI's ends are OpenAI's "stop"."""
    value = {"generated_text": "Hi", "details": {"finish_reason": reason, "generated_tokens": 1}}
    assert answered(DIALECT, text(), value)["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[]", 502, "upstream_invalid_response"),
        (b'{"generated_text": null}', 502, "upstream_invalid_response"),
        (b"<html>", 502, "upstream_invalid_response"),
        (b'{"error": "secret", "error_type": "generation"}', 502, "upstream_error"),
        (b'{"error": "secret"}', 502, "upstream_error"),
    ],
)
def test_what_is_no_answer(body: bytes, status: int, code: str) -> None:
    """What cannot be understood, and an error under 200, is a bad gateway."""
    assert failure(DIALECT, chat(), body)[:2] == (status, code)
    assert "secret" not in failure(DIALECT, chat(), body)[2]


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (422, "Input validation error: `temperature` must be strictly positive",
         (400, "upstream_error", "temperature")),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048.",
         (400, "context_length_exceeded", None)),
        (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 3000",
         (400, "context_length_exceeded", None)),
        (422, "Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 9",
         (400, "upstream_error", "top_logprobs")),
        (422, ("Input validation error: grammar is not valid: "
               "Grammar must have a 'properties' field"),
         (400, "upstream_error", "response_format")),
        (429, "Model is overloaded", (429, "rate_limit_exceeded", None)),
        (424, "Request failed during generation: secret", (502, "upstream_error", None)),
        (500, "Incomplete generation: secret", (502, "upstream_error", None)),
        (503, "unhealthy: secret", (503, "upstream_error", None)),
    ],
)  # fmt: skip
def test_errors(status: int, text: str, expected: tuple[int, str, str | None]) -> None:
    """Bad input is 400 and names OpenAI's field, overload 429; what fails inside says no more."""
    body = json.dumps({"error": text, "error_type": "x"}).encode()
    error = DIALECT.error(AnswerHead(status, "application/json"), body)
    assert (error.status, error.code, error.param) == expected
    assert "secret" not in error.message


def test_an_error_without_a_body() -> None:
    """An error that says nothing has a text all the same."""
    error = DIALECT.error(AnswerHead(422, ""), b"")
    assert (error.status, error.message) == (400, "The upstream refused the request (HTTP 422).")


@given(CUTS)
def test_any_cut_gives_the_same_stream(cuts: list[int]) -> None:
    """However the network cuts a stream, the same events come out; special tokens do not."""
    whole = stream("Hé", "llo", "</s>")
    events, error = fed(DIALECT.stream(chat(**USAGE)), *pieces(whole, cuts))
    assert error is None
    assert (said(events), ends(events), usage(events)) == ("Héllo", ["stop"], (9, 3))
    assert events[-1] == "[DONE]"


def test_a_stop_string_does_not_show() -> None:
    """TGI leaves the stop string in its text: none of it shows, though it comes in two tokens."""
    call = chat(stream=True, stop="END")
    events, error = fed(DIALECT.stream(call), stream("a", " E", "N", "D", reason="stop_sequence"))
    assert (said(events), ends(events), error) == ("a ", ["stop"], None)
    events, _ = fed(DIALECT.stream(call), stream("a", " E", "N", reason="length"))
    assert (said(events), ends(events)) == ("a EN", ["length"])


@pytest.mark.parametrize(
    "broken", [b"", event(token("b")), b"data: {\n\n", b"<html>\n\n", b"data: [DONE]\n\n"]
)
def test_a_stream_without_its_end_is_broken(broken: bytes) -> None:
    """A stream is at its end when the whole text came, and broken where that never does."""
    events, error = fed(DIALECT.stream(chat(stream=True)), event(token("a")), broken)
    assert said(events).startswith("a")
    assert ends(events) == []
    assert error is not None
    assert error.code == "upstream_stream_broken"


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [("validation", 400, "upstream_error"), ("overloaded", 429, "rate_limit_exceeded"),
     ("generation", 502, "upstream_error"), ("incomplete_generation", 502, "upstream_error")],
)  # fmt: skip
def test_an_error_event(kind: str, status: int, code: str) -> None:
    """An error event ends the stream, with the status that its type stands for."""
    told = event({"error": "some text", "error_type": kind})
    events, error = fed(DIALECT.stream(chat(stream=True)), event(token("a")) + told)
    assert said(events) == "a"
    assert error is not None
    assert (error.status, error.code) == (status, code)


def test_models() -> None:
    """The model is the one that TGI's information names."""
    assert DIALECT.models(b'{"model_id": "a/b", "sha": null}') == ("a/b",)
    assert DIALECT.models(b"[]") is None
    assert DIALECT.models(b"{}") is None


def test_options_that_are_none() -> None:
    """A bad option stops the start."""
    with pytest.raises(ValueError, match="max_stop_strings must be a whole number"):
        TgiDialect(max_stop_strings="-1")


async def test_a_client_of_tgi(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's own client gets chats, streams, usage and errors from TGI."""
    server = TgiServer()
    async with (
        proxied(monkeypatch, DIALECT, server.app()) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client,
    ):
        ask = client.chat.completions.create
        hi: Any = [{"role": "user", "content": "hi"}]
        assert (await proxy.get("/health"))[1]["backend"]["models"] == [MODEL]

        answer = await ask(model=MODEL, messages=hi, stop=["END"], temperature=0, top_p=1)
        assert answer.choices[0].message.content == "Hello there, you "
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 5)
        assert server.seen[-1] == (
            "/generate",
            {
                "inputs": "<user>hi<assistant>",
                "parameters": {**BASE, "do_sample": False, "stop": ["END"]},
            },
        )

        stream = await ask(model=MODEL, messages=hi, stop=["END"], stream=True, max_tokens=50)
        chunks = [chunk async for chunk in stream]
        words = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(words) == "Hello there, you "
        assert chunks[-1].choices[0].finish_reason == "stop"

        with pytest.raises(BadRequestError) as refused:
            await ask(model=MODEL, messages=hi, stream=True, max_tokens=5000)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(RateLimitError):
            await ask(model=MODEL, messages=[{"role": "user", "content": OVERLOADED}], stream=True)
        broken = await ask(
            model=MODEL, messages=[{"role": "user", "content": FAILING}], stream=True
        )
        with pytest.raises(APIError) as failed:
            _ = [chunk async for chunk in broken]
        assert failed.value.code == "upstream_error"
        assert "secret" not in str(failed.value)


def test_headers_pass() -> None:
    """A client's own headers go along, its credentials do not."""
    call = Call("/v1/completions", b"", text().asked, headers=[("x-tenant", "a"), ("cookie", "b")])
    assert DIALECT.request(call).headers == [
        ("x-tenant", "a"),
        ("content-type", "application/json"),
    ]
