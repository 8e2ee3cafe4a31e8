"""The `triton` dialect: pure functions, then a stand-in behind a real proxy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, NotFoundError

from openai_protocol.errors import BadGateway, InvalidRequest
from openai_proxy.dialects.base import AnswerHead
from openai_proxy.dialects.triton import TritonDialect
from tests.proxy import harness
from tests.proxy.calls import chat, contents, fed, reason, text, until_error
from tests.proxy.harness import answered, answered_json, streamed
from tests.proxy.standin.served import MODEL, Server, proxy_for
from tests.proxy.standin.triton_server import ONE_ANSWER, triton_server
from tests.proxy.translating import events_of, pieces, render, sent

OK = AnswerHead(200, "application/json")
REFUSED = AnswerHead(400, "application/json")


def piece(text: str, **outputs: Any) -> bytes:
    """One event of a stream."""
    value = {"model_name": "m", "model_version": "1", "text_output": text, **outputs}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


STREAM = piece("He") + piece("l\n\nl") + piece("o")


def test_what_any_model_is_asked() -> None:
    """Scalars stand among the parameters, with the wish not to repeat the prompt."""
    request = TritonDialect(render).request(chat(temperature=0.5, stop=["x"], max_tokens=3))
    assert request.path == "/models/small/generate"
    assert json.loads(request.body) == {
        "text_input": "<user>hi<assistant>",
        "parameters": {
            "temperature": 0.5,
            "stop": "x",
            "max_tokens": 3,
            "stream": False,
            "exclude_input_in_output": True,
        },
    }


def test_a_stream_of_a_version() -> None:
    """A version stands in the path; a model's texts may have other names."""
    dialect = TritonDialect(version="3", input_field="PROMPT", output_field="TEXT")
    request = dialect.request(text(stream=True))
    body = json.loads(request.body)
    assert request.path == "/models/small/versions/3/generate_stream"
    assert (body["PROMPT"], body["parameters"]["stream"]) == ("hi", True)
    value = json.loads(dialect.answer(text(), OK, b'{"model_name": "m", "TEXT": "yes"}'))
    assert value["choices"][0]["text"] == "yes"


def test_what_vllm_is_asked() -> None:
    """vLLM's parameters are one JSON text, lists too; it is asked for reasons and tokens."""
    dialect = TritonDialect(backend="vllm", defaults={"max_tokens": 256})
    parameters = sent(dialect, text(stop=["x", "y"], seed=-1))["parameters"]
    assert json.loads(parameters.pop("sampling_parameters")) == {
        "max_tokens": 256,
        "stop": ["x", "y"],
        "seed": -1,
    }
    assert parameters == {
        "stream": False,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }


def test_what_tensorrt_llm_is_asked() -> None:
    """TensorRT-LLM has names of its own, tensors of words, and seeds without a sign."""
    dialect = TritonDialect(backend="tensorrt-llm")
    parameters = sent(dialect, text(stop=["x", "y"], seed=-1, max_tokens=5))["parameters"]
    assert parameters["stop_words"] == ["x", "y"]
    assert parameters["bad_words"] == ""
    assert parameters["seed"] == 2**64 - 1
    assert parameters["max_tokens"] == 5
    assert sent(dialect, text(max_tokens=5))["parameters"]["stop_words"] == ""


def test_tensorrt_llm_needs_a_limit() -> None:
    """Without a limit, from the client or by default, TensorRT-LLM would fail: it is said so."""
    with pytest.raises(InvalidRequest) as refused:
        TritonDialect(backend="tensorrt-llm").request(text())
    assert (refused.value.param, refused.value.code) == ("max_tokens", "missing_required_parameter")
    dialect = TritonDialect(backend="tensorrt-llm", defaults={"max_tokens": 64})
    assert sent(dialect, text())["parameters"]["max_tokens"] == 64


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"n": 2}, "n"), ({"logit_bias": {"1": 2.0}}, "logit_bias"), ({"stop": ["a", "b"]}, "stop")],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], param: str) -> None:
    """What is no scalar, or more than one text, is refused by name."""
    with pytest.raises(InvalidRequest) as refused:
        TritonDialect().request(text(**fields))
    assert refused.value.param == param
    assert param not in sent(TritonDialect(unsupported="drop"), text(**fields))["parameters"]


def test_an_answer_with_reason_and_tokens() -> None:
    """Text, reason and usage of an answer arrive."""
    value = {
        "text_output": "Hello",
        "finish_reason": "length",
        "num_input_tokens": 3,
        "num_output_tokens": [2],
    }
    answer = json.loads(TritonDialect().answer(chat(), OK, json.dumps(value).encode()))
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 5


def test_a_repeated_prompt_is_taken_off() -> None:
    """A model that repeats its prompt all the same loses it here."""
    dialect = TritonDialect(strip_prompt=True)
    answer = json.loads(dialect.answer(text(), OK, b'{"text_output": "hi there"}'))
    assert answer["choices"][0]["text"] == " there"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (json.dumps({"error": ONE_ANSWER}).encode(), "upstream_error"),
        (b'{"model_name": "m"}', "upstream_invalid_response"),
        (b"", "upstream_invalid_response"),
    ],
)
def test_no_answer(body: bytes, code: str) -> None:
    """An error under 200 is one; what has no text cannot be understood."""
    with pytest.raises(BadGateway) as failed:
        TritonDialect().answer(text(), OK, body)
    assert failed.value.code == code


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_of_a_stream_is_the_same(cuts: list[int]) -> None:
    """However the network cuts a stream, the same text comes out; no `[DONE]` is waited for."""
    data = fed(TritonDialect().stream(chat(stream=True)), *pieces(STREAM, cuts))
    assert (contents(data), reason(data)) == ("Hel\n\nlo", "stop")
    assert data.endswith(b"data: [DONE]\n\n")


def test_a_stream_of_vllm() -> None:
    """Reasons come with each event, as `None` until the last; tokens are counted up."""
    stream = b"".join(
        piece(word, finish_reason=told, num_input_tokens=3, num_output_tokens=1)
        for word, told in (("a", "None"), ("b", "None"), ("", "length"))
    )
    call = chat(stream=True, stream_options={"include_usage": True})
    data = fed(TritonDialect(backend="vllm").stream(call), stream)
    assert (contents(data), reason(data)) == ("ab", "length")
    usage = events_of(data.decode())[-2]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 3)


@pytest.mark.parametrize(
    "stream", [piece("a", finish_reason="None"), piece("a") + b'data: {"text_out']
)
def test_a_stream_that_breaks_off(stream: bytes) -> None:
    """A stream whose reason never comes, or whose last event is cut off, is broken."""
    with pytest.raises(BadGateway) as broken:
        fed(TritonDialect().stream(chat(stream=True)), stream)
    assert broken.value.code == "upstream_stream_broken"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Request for unknown model: 'm' is not found", (404, "model_not_found", "model")),
        ("[request id: <id_unknown>] expected 4 inputs but got 1", (400, "upstream_error", None)),
        (
            "Failed to process the request(s) for model instance 'm_0', message: /secret",
            (502, "upstream_error", None),
        ),
        ("Traceback (most recent call last): /secret", (502, "upstream_error", None)),
    ],
)
def test_errors_under_400(error: str, expected: tuple[int, str, str | None]) -> None:
    """Triton says 400 whatever went wrong: what failed inside is a 502, and stays inside."""
    told = TritonDialect().error(REFUSED, json.dumps({"error": error}).encode())
    assert (told.status, str(told.code), told.param) == expected
    assert "secret" not in told.message


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        (None, b'{"model_stats": [{"name": "a", "version": "1"}, {"name": "a"}]}', ("a",)),
        (None, b'{"model_stats": []}', ()),
        (None, b"", None),
        ("a", b"", ("a",)),
    ],
)
def test_models(model: str | None, body: bytes, expected: tuple[str, ...] | None) -> None:
    """The models with statistics, each once, or the one whose readiness was asked for."""
    assert TritonDialect(model=model).models(body) == expected


def test_where_readiness_is_seen() -> None:
    """The statistics are asked, or the model that is named, in its version."""
    assert TritonDialect().models_path == "/models/stats"
    assert TritonDialect(model="a", version="2").models_path == "/models/a/versions/2/ready"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with triton_server() as running:
        yield running


@pytest.fixture(params=["generic", "vllm"])
async def proxy(
    request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[harness.Proxy]:
    dialect = TritonDialect(render, backend=request.param)
    async with proxy_for(dialect, server.url, monkeypatch) as running:
        yield running


@pytest.fixture
async def client(proxy: harness.Proxy) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def test_the_official_client(client: AsyncOpenAI, proxy: harness.Proxy) -> None:
    """The official client gets an answer and a stream, without the prompt."""
    assert (await proxy.get("/health/ready"))[0] == 200
    answer = await client.completions.create(model=MODEL, prompt="hi")
    assert answer.choices[0].text == "HI!"
    stream = await client.completions.create(model=MODEL, prompt="hi there", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "HI THERE!"


async def test_reason_and_usage_of_vllm(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the vLLM backend reason and usage arrive, whole and streamed."""
    dialect = TritonDialect(render, backend="vllm")
    async with (
        proxy_for(dialect, server.url, monkeypatch) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        answer = await client.completions.create(model=MODEL, prompt="hello", max_tokens=4)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)
        stream = await client.completions.create(
            model=MODEL,
            prompt="hello",
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


async def test_an_unknown_model(client: AsyncOpenAI) -> None:
    """What Triton calls a bad request is OpenAI's 404 where it is about the model."""
    for is_stream in (False, True):
        with pytest.raises(NotFoundError) as refused:
            await client.completions.create(model="other", prompt="a", stream=is_stream)
        assert refused.value.code == "model_not_found"


async def test_a_first_event_that_is_an_error(proxy: harness.Proxy, server: Server) -> None:
    """An error that Triton frames as an event, under whatever status, gets a status of its own."""
    event = b'data: {"error":"An Error Occurred"}\n\n'
    for respond in (streamed(event), answered(500, event, "text/event-stream")):
        server.respond = respond
        status, value = await proxy.chat(model=MODEL, stream=True)
        assert (status, value["error"]["code"]) == (502, "upstream_error")


async def test_an_error_in_mid_stream(client: AsyncOpenAI, server: Server) -> None:
    """The text before an error arrives, then the error; there is no `[DONE]` after it."""
    server.respond = streamed(piece("He"), piece("l"), b'data: {"error":"An Error Occurred"}\n\n')
    stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
    assert await until_error(stream) == "Hel"


async def test_an_error_under_200(proxy: harness.Proxy, server: Server) -> None:
    """A model that gives several answers where one is wanted has failed."""
    server.respond = answered_json({"error": ONE_ANSWER})
    status, value = await proxy.chat(model=MODEL)
    assert (status, value["error"]["code"]) == (502, "upstream_error")
