"""The `kserve-v2` dialect: pure functions, then a stand-in behind a real proxy."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, BadRequestError, NotFoundError, RateLimitError

from openai_protocol.errors import ApiError, BadGateway, InvalidRequest
from openai_proxy.dialects.base import AnswerHead
from openai_proxy.dialects.kserve_v2 import KServeV2Dialect
from openai_proxy.dialects.tensors import read_answer, read_tensors
from tests.proxy import harness
from tests.proxy.calls import chat, contents, fed, reason, text, until_error
from tests.proxy.harness import answered, answered_json, start_stream, streamed
from tests.proxy.standin.kserve_server import kserve_server
from tests.proxy.standin.served import MODEL, Server, proxy_for
from tests.proxy.translating import events_of, pieces, render, sent

OK = AnswerHead(200, "application/json")


def output(data: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "output-0", "shape": [1], "datatype": "BYTES", "data": data, **fields}


def answer(*outputs: dict[str, Any]) -> bytes:
    return json.dumps({"model_name": "m", "id": "1", "outputs": outputs}).encode()


def binary(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in texts)


def with_binary(*tensors: tuple[str, str, bytes], pad: bytes = b"") -> bytes:
    """An answer with these tensors (name, datatype, bytes) behind its JSON."""
    outputs = [
        {
            "name": name,
            "shape": [1],
            "datatype": datatype,
            "parameters": {"binary_data_size": len(data)},
        }
        for name, datatype, data in tensors
    ]
    return answer(*outputs) + pad + b"".join(data for _, _, data in tensors)


def piece(text: str, told: str | None = None) -> bytes:
    """One event of a generate stream."""
    value = {"text_output": text, "model_name": "m", "details": {"finish_reason": told}}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


GENERATE = KServeV2Dialect(render, api="generate")
STREAM = piece("He") + b": note\n\n" + piece("l\n\nl") + piece("o", "length")


def test_texts_become_a_tensor() -> None:
    """Each choice of each prompt is an element of one tensor of texts."""
    request = KServeV2Dialect(input_tensor="in").request(text(prompt=["a", "b"], n=2))
    assert request.path == "/models/small/infer"
    assert json.loads(request.body) == {
        "id": "cmpl-1",
        "inputs": [{"name": "in", "shape": [4], "datatype": "BYTES", "data": ["a", "a", "b", "b"]}],
    }


def test_a_batched_model_of_a_version() -> None:
    """Versions stand in the path, batches in the shape, a wanted output by its name."""
    dialect = KServeV2Dialect(
        render,
        version="3",
        is_batched=True,
        output_tensor="out",
        parameters={"max_tokens": "limit"},
    )
    request = dialect.request(chat(max_tokens=4))
    body = json.loads(request.body)
    assert request.path == "/models/small/versions/3/infer"
    assert body["inputs"][0]["shape"] == [1, 1]
    assert body["inputs"][0]["data"] == ["<user>hi<assistant>"]
    assert body["outputs"] == [{"name": "out"}]
    assert body["parameters"] == {"limit": 4}


def test_infer_takes_scalars() -> None:
    """V2 has no lists among its parameters: one stop string is sent, several are refused."""
    dialect = KServeV2Dialect(parameters={"stop": "stop"})
    assert sent(dialect, text(stop=["a"]))["parameters"] == {"stop": "a"}
    with pytest.raises(InvalidRequest) as refused:
        dialect.request(text(stop=["a", "b"]))
    assert refused.value.param == "stop"


def test_what_a_model_knows_is_configured() -> None:
    """The protocol names no parameters: what is not configured is refused, or dropped."""
    with pytest.raises(InvalidRequest) as refused:
        KServeV2Dialect().request(text(temperature=0.5))
    assert (refused.value.param, refused.value.code) == ("temperature", "unsupported_parameter")
    assert "parameters" not in sent(KServeV2Dialect(unsupported="drop"), text(temperature=0.5))


def test_texts_of_an_answer() -> None:
    """The elements of the first tensor of texts are the choices, whatever their nesting."""
    body = answer(
        {"name": "score", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]},
        output([["a"], ["b"]]),
    )
    value = json.loads(KServeV2Dialect().answer(text(n=2), OK, body))
    assert [choice["text"] for choice in value["choices"]] == ["a", "b"]
    assert "usage" not in value


def test_reasons_and_tokens_of_an_answer() -> None:
    """Tensors beside the text, by the names of Triton's vLLM, tell reason and usage."""
    body = answer(
        output(["a"]),
        output(["length"], name="finish_reason"),
        {"name": "num_input_tokens", "shape": [1], "datatype": "UINT32", "data": [3]},
        {"name": "num_output_tokens", "shape": [1], "datatype": "UINT32", "data": [2]},
    )
    value = json.loads(KServeV2Dialect().answer(text(), OK, body))
    assert value["choices"][0]["finish_reason"] == "length"
    assert value["usage"]["total_tokens"] == 5


def test_elements_that_are_json() -> None:
    """Where elements are JSON objects, their texts are taken, without the repeated prompt."""
    dialect = KServeV2Dialect(text_field="generated_text", strip_prompt=True)
    body = answer(output(['{"generated_text": "hi there"}']))
    assert json.loads(dialect.answer(text(), OK, body))["choices"][0]["text"] == " there"
    with pytest.raises(BadGateway):
        dialect.answer(text(), OK, answer(output(["plain"])))


@given(
    st.lists(st.text(max_size=9), min_size=1, max_size=3),
    st.binary(max_size=8),
    st.sampled_from([b"", b" ", b"\n  "]),
)
def test_binary_texts(texts: list[str], other: bytes, pad: bytes) -> None:
    """Binary tensors behind the JSON are found, whatever lies before and between them."""
    elements = binary(*(one.encode() for one in texts))
    body = with_binary(("score é", "FP32", other), ("output-0", "BYTES", elements), pad=pad)
    value = json.loads(KServeV2Dialect().answer(text(n=len(texts)), OK, body))
    assert [choice["text"] for choice in value["choices"]] == texts


@pytest.mark.parametrize(
    "body",
    [
        with_binary(("output-0", "BYTES", binary(b"abc")))[:-1],
        with_binary(("output-0", "BYTES", b"\x09\0\0\0ab")),
        with_binary(("output-0", "BYTES", b"\x09\0")),
        with_binary(("output-0", "BYTES", binary(b"abc")), pad=b"?"),
        answer(output(None, parameters={"binary_data_size": -1})),
        answer(output(None, parameters={"binary_data_size": True})),
        answer(output(None, parameters={"binary_data_size": "5"})),
    ],
)
def test_binary_that_does_not_fit(body: bytes) -> None:
    """Sizes that do not fit what is there are no answer, rather than a wrong one."""
    with pytest.raises(BadGateway):
        KServeV2Dialect().answer(text(), OK, body)


@given(st.binary(max_size=80))
def test_garbage_is_no_answer(garbage: bytes) -> None:
    """Whatever bytes come, they are understood or refused."""
    for body in (garbage, answer(output(["a"])) + garbage):
        with contextlib.suppress(BadGateway):
            read_tensors(*read_answer(body))


def test_deep_json_is_no_answer() -> None:
    """JSON that is nested too deeply is refused."""
    with pytest.raises(BadGateway):
        read_answer(b"[" * 100_000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"outputs": 1}',
        b'{"outputs": [1]}',
        answer(),
        answer(output("a")),
        answer(output([1])),
        answer(output([])),
        answer(output(["a", "b"])),
        answer(output(["a"], datatype="FP32")),
    ],
)
def test_no_texts(body: bytes) -> None:
    """What has no text for each choice cannot be understood, as an answer or as a stream."""
    with pytest.raises(BadGateway) as broken:
        KServeV2Dialect().answer(text(), OK, body)
    assert broken.value.code == "upstream_invalid_response"
    with pytest.raises(BadGateway):
        fed(KServeV2Dialect().stream(text()), body)


@given(st.lists(st.integers(0, 150), max_size=6))
def test_any_cut_of_an_answer_is_the_same_stream(cuts: list[int]) -> None:
    """However an answer is cut, the same stream comes out."""
    body = with_binary(("output-0", "BYTES", binary(b"Hello")))
    data = fed(KServeV2Dialect().stream(chat(stream=True)), *pieces(body, cuts))
    assert (contents(data), reason(data)) == ("Hello", "stop")
    assert data.endswith(b"data: [DONE]\n\n")


def test_what_generate_is_asked() -> None:
    """A chat is rendered; details are asked for, since only they tell why a text ends."""
    request = GENERATE.request(chat(temperature=0.5, stop="x", max_tokens=3))
    assert request.path == "/models/small/generate"
    assert json.loads(request.body) == {
        "text_input": "<user>hi<assistant>",
        "parameters": {"temperature": 0.5, "stop": ["x"], "max_tokens": 3, "details": True},
    }
    assert GENERATE.request(chat(stream=True)).path == "/models/small/generate_stream"


@pytest.mark.parametrize(
    ("fields", "param"), [({"n": 2}, "n"), ({"seed": 1}, "seed"), ({"top_k": 3}, "top_k")]
)
def test_what_generate_does_not_have(fields: dict[str, Any], param: str) -> None:
    """What the protocol does not define is refused by name."""
    with pytest.raises(InvalidRequest) as refused:
        GENERATE.request(chat(**fields))
    assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")


def test_generate_takes_one_prompt() -> None:
    """Of several prompts not one is lost in silence."""
    with pytest.raises(InvalidRequest) as refused:
        GENERATE.request(text(prompt=["a", "b"]))
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"details": {"finish_reason": "length"}}, "length"),
        ({"details": {"finish_reason": "eos_token"}}, "stop"),
        ({"details": {"finish_reason": "stop_sequence"}}, "stop"),
        ({}, "stop"),
    ],
)
def test_an_answer_of_generate(told: dict[str, Any], expected: str) -> None:
    """Text and reason of an answer arrive."""
    body = json.dumps({"text_output": "Hello", "model_name": "m", **told}).encode()
    value = json.loads(GENERATE.answer(chat(), OK, body))
    assert value["choices"][0]["message"]["content"] == "Hello"
    assert value["choices"][0]["finish_reason"] == expected


@pytest.mark.parametrize(("keep", "expected"), [(False, "Hel"), (True, "Hello")])
def test_a_stop_string_is_left_out(keep: bool, expected: str) -> None:
    """A stop string that the server leaves at a text's end goes, unless it is to stay."""
    dialect = KServeV2Dialect(
        render,
        api="generate",
        parameters={name: name for name in ("stop", "include_stop_str_in_output")},
    )
    fields = {"stop": "lo", "include_stop_str_in_output": keep}
    body = b'{"text_output": "Hello", "details": {"finish_reason": "stop_sequence"}}'
    value = json.loads(dialect.answer(chat(**fields), OK, body))
    assert value["choices"][0]["message"]["content"] == expected
    stream = piece("He") + piece("ll") + piece("o", "stop_sequence")
    assert contents(fed(dialect.stream(chat(stream=True, **fields)), stream)) == expected


@pytest.mark.parametrize("body", [b"", b"{}", b'{"text_output": 1}', b'{"text_output": ["a","b"]}'])
def test_no_answer_of_generate(body: bytes) -> None:
    """What has no text cannot be understood."""
    with pytest.raises(BadGateway) as broken:
        GENERATE.answer(chat(), OK, body)
    assert broken.value.code == "upstream_invalid_response"


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_of_a_stream_is_the_same(cuts: list[int]) -> None:
    """However the network cuts a stream, the same text comes out, and its reason."""
    data = fed(GENERATE.stream(chat(stream=True)), *pieces(STREAM, cuts))
    assert (contents(data), reason(data)) == ("Hel\n\nlo", "length")
    assert data.endswith(b"data: [DONE]\n\n")


@given(st.binary(max_size=100))
def test_garbage_never_ends_a_stream_well(garbage: bytes) -> None:
    """Whatever follows in a stream, it is no good end unless it is one."""
    parser = GENERATE.stream(chat(stream=True))
    begun = parser.feed(piece("He"))
    assert contents(begun) == "He"
    with pytest.raises(BadGateway):
        fed(parser, garbage)


@pytest.mark.parametrize(
    "stream",
    [piece("He"), piece("He") + b"data: {", piece("He", "length") + b"data: {"],
)
def test_a_stream_that_breaks_off(stream: bytes) -> None:
    """A stream that ends before its reason, or within an event, is broken."""
    with pytest.raises(BadGateway) as broken:
        fed(GENERATE.stream(chat(stream=True)), stream)
    assert broken.value.code == "upstream_stream_broken"


def test_a_stream_of_nothing() -> None:
    """A stream without one event is an answer that cannot be understood, not an empty text."""
    with pytest.raises(BadGateway) as broken:
        fed(GENERATE.stream(chat(stream=True)))
    assert broken.value.code == "upstream_invalid_response"


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b'data: {"text_output":"a","model_name":"m"}\n\n', "stop"),
        (b'data: {"text_output":"a","model_name":"m","done":true}\n\n', "stop"),
        (piece("a", "length") + b"data: [DONE]\n\n", "length"),
    ],
)
def test_ends_of_other_drafts(stream: bytes, expected: str) -> None:
    """Where reasons are not told, the connection's end is the stream's; `done` is one, too."""
    data = fed(GENERATE.stream(chat(stream=True)), stream)
    assert (contents(data), reason(data)) == ("a", expected)


def test_an_error_in_a_stream() -> None:
    """What came before an error is passed on; the error ends the stream, without its text."""
    parser = GENERATE.stream(chat(stream=True))
    passed = parser.feed(piece("He") + b'data: {"error": "/secret"}\n\n' + piece("y"))
    assert contents(passed) == "He"
    assert parser.is_complete
    with pytest.raises(BadGateway) as failed:
        parser.finish()
    assert (failed.value.code, "secret" in failed.value.message) == ("upstream_error", False)


def test_an_endless_event() -> None:
    """An event that never ends is given up at the size limit."""
    parser = GENERATE.stream(chat(stream=True))
    for _ in range(9):
        parser.feed(b"x" * 1024 * 1024)
    assert parser.is_complete
    with pytest.raises(BadGateway):
        parser.finish()


def test_an_echo_in_a_stream() -> None:
    """A prompt that is repeated in the first events is taken off."""
    dialect = KServeV2Dialect(api="generate", strip_prompt=True)
    stream = piece("h") + piece("i yo") + piece("u", "stop")
    data = fed(dialect.stream(text(stream=True)), stream)
    texts = [event["choices"][0]["text"] for event in events_of(data.decode())[:-1]]
    assert "".join(texts) == " you"


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        (None, b'{"models": ["a"]}', ("a",)),
        (None, b'{"models": []}', ()),
        (None, b"", None),
        ("a", b"", ("a",)),
        ("a", b'{"name": "a", "ready": true}', ("a",)),
        ("a", b'{"name": "a", "ready": false}', ()),
    ],
)
def test_models(model: str | None, body: bytes, expected: tuple[str, ...] | None) -> None:
    """The list's names, or the one model whose readiness was asked for."""
    assert KServeV2Dialect(model=model).models(body) == expected


def test_where_readiness_is_seen() -> None:
    """The list is asked, or the model that is named, in its version."""
    assert KServeV2Dialect().models_path == "/models"
    assert KServeV2Dialect(model="a", version="2").models_path == "/models/a/versions/2/ready"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with kserve_server() as running:
        yield running


@pytest.fixture(params=["infer", "generate"])
async def client(
    request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncOpenAI]:
    names = {name: name for name in ("max_tokens", "stop")}
    dialect = KServeV2Dialect(render, api=request.param, model=MODEL, parameters=names)
    async with (
        proxy_for(dialect, server.url, monkeypatch, max_retries=0) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        assert (await proxy.get("/health/ready"))[0] == 200
        yield client


async def test_the_official_client(client: AsyncOpenAI) -> None:
    """The official client gets an answer and a stream through either API."""
    answer = await client.completions.create(model=MODEL, prompt="hi", max_tokens=9)
    assert answer.choices[0].text == "HI!"
    messages: Any = [{"role": "user", "content": "é"}]
    stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "<USER>É<ASSISTANT>!"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_errors_of_the_server(client: AsyncOpenAI, server: Server) -> None:
    """Refusals reach the official client as what they are, for streams too."""
    for is_stream in (False, True):
        server.respond = None
        with pytest.raises(NotFoundError) as unknown:
            await client.completions.create(model="other", prompt="a", stream=is_stream)
        assert unknown.value.code == "model_not_found"
        server.respond = answered_json({"error": "Input validation error"}, 422)
        with pytest.raises(BadRequestError):
            await client.completions.create(model=MODEL, prompt="a", stream=is_stream)
        server.respond = answered(429, b"", "text/plain", **{"retry-after": "2"})
        with pytest.raises(RateLimitError) as limited:
            await client.completions.create(model=MODEL, prompt="a", stream=is_stream)
        assert limited.value.response.headers["retry-after"] == "2"


async def test_binary_data_goes_through(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer with binary tensors is understood, whole and as a stream."""
    server.respond = answered(
        200, with_binary(("output-0", "BYTES", binary(b"Hello"))), "application/octet-stream"
    )
    async with proxy_for(KServeV2Dialect(render), server.url, monkeypatch) as proxy:
        status, value = await proxy.chat(model=MODEL)
        assert (status, value["choices"][0]["message"]["content"]) == (200, "Hello")
        assert contents((await proxy.stream(model=MODEL)).encode()) == "Hello"


@pytest.fixture
async def generating(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[harness.Proxy]:
    async with proxy_for(GENERATE, server.url, monkeypatch) as proxy:
        yield proxy


async def test_an_error_before_any_text_has_a_status(
    generating: harness.Proxy, server: Server
) -> None:
    """An error under 200 that comes first becomes the status of the answer."""
    server.respond = streamed(b'data: {"error": "Request failed during generation"}\n\n')
    status, value = await generating.chat(model=MODEL, stream=True)
    assert (status, value["error"]["code"]) == (502, "upstream_error")


async def test_an_error_in_mid_stream_ends_it(server: Server, generating: harness.Proxy) -> None:
    """The official client gets the text before an error, then the error."""
    server.respond = streamed(piece("He"), piece("l"), b'data: {"error": "no"}\n\n')
    async with AsyncOpenAI(base_url=f"{generating.url}/v1", api_key="k", max_retries=0) as client:
        stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
        assert await until_error(stream) == "Hel"


async def test_a_client_that_leaves_a_stream(generating: harness.Proxy, server: Server) -> None:
    """When a client leaves in mid-stream, the upstream's connection is closed."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        while True:
            await response.write(piece("a"))
            await asyncio.sleep(0.01)

    server.respond = endless
    body = {"model": MODEL, "messages": harness.MESSAGES, "stream": True}
    async with generating.http.post(generating.url + harness.CHAT, json=body) as response:
        await response.content.readany()
    await asyncio.wait_for(server.closed.wait(), 5)


@given(st.integers(400, 599), st.binary(max_size=60))
def test_any_error_is_an_envelope(status: int, body: bytes) -> None:
    """Whatever an upstream says, an error with a code comes out."""
    error = KServeV2Dialect().error(AnswerHead(status, ""), body)
    assert isinstance(error, ApiError)
    assert error.code


def test_copies_of_a_prompt_are_bounded() -> None:
    """Where each choice takes its prompt anew, a large one cannot be asked for many times."""
    large = b"x" * (1 << 20)
    with pytest.raises(InvalidRequest) as caught:
        KServeV2Dialect().request(dataclasses.replace(text(n=17), body=large))
    assert caught.value.param == "n"
    assert KServeV2Dialect().request(dataclasses.replace(text(n=16), body=large))
