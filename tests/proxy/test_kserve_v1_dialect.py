"""The `kserve-v1` dialect: pure functions, then a stand-in behind a real proxy."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, NotFoundError

from openai_protocol.errors import ApiError, BadGateway, InvalidRequest
from openai_proxy.dialects.base import AnswerHead, Call
from openai_proxy.dialects.kserve_v1 import KServeV1Dialect
from tests.proxy import harness
from tests.proxy.calls import chat, contents, fed, reason, text
from tests.proxy.standin.kserve_server import kserve_server
from tests.proxy.standin.served import MODEL, Server, proxy_for
from tests.proxy.translating import events_of, pieces, render, sent

OK = AnswerHead(200, "application/json")
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
}
OURS = {"text": "Hello", "finish_reason": "length", "usage": USAGE}


def predicted(*predictions: Any) -> bytes:
    return json.dumps({"predictions": predictions}).encode()


def answer(dialect: KServeV1Dialect, call: Call, *predictions: Any) -> Any:
    return json.loads(dialect.answer(call, OK, predicted(*predictions)))


def test_a_chat_of_our_predictor() -> None:
    """Our predictor gets messages as they came, and parameters beside them."""
    request = KServeV1Dialect().request(chat(temperature=0.5, max_completion_tokens=9, user="u"))
    assert request.path == "/models/small:predict"
    assert json.loads(request.body) == {
        "instances": [
            {
                "messages": [{"role": "user", "content": "hi"}],
                "temperature": 0.5,
                "max_tokens": 9,
                "user": "u",
            }
        ]
    }


def test_parts_of_a_message_stay() -> None:
    """Content that comes in parts, and fields that nobody knows here, are not lost."""
    message = {"role": "user", "content": [{"type": "text", "text": "a", "mark": 1}], "name": "n"}
    assert sent(KServeV1Dialect(), chat(messages=[message]))["instances"][0]["messages"] == [
        message
    ]


def test_choices_of_prompts_are_instances() -> None:
    """Each choice of each prompt is an instance, with a seed of its own."""
    body = sent(KServeV1Dialect(), text(prompt=["a", "b"], n=2, seed=2**63 - 1))
    assert body["instances"] == [
        {"prompt": "a", "seed": 2**63 - 1},
        {"prompt": "a", "seed": -(2**63)},
        {"prompt": "b", "seed": 2**63 - 1},
        {"prompt": "b", "seed": -(2**63)},
    ]


def test_token_ids_go_to_our_predictor() -> None:
    """Our predictor takes token ids for a prompt."""
    assert sent(KServeV1Dialect(), text(prompt=[[1, 2]]))["instances"] == [{"prompt": [1, 2]}]


def test_texts_as_instances() -> None:
    """A plain text model gets the texts alone, and parameters, if it knows any, beside them."""
    dialect = KServeV1Dialect(render, instance="text", parameters={"max_tokens": "limit"})
    assert sent(dialect, chat(max_tokens=4)) == {
        "instances": ["<user>hi<assistant>"],
        "parameters": {"limit": 4},
    }
    assert sent(dialect, text(prompt=["a", "b"])) == {"instances": ["a", "b"]}


def test_objects_as_instances() -> None:
    """An object has the prompt in the field that is configured, parameters beside it."""
    names = {"max_tokens": "max_new_tokens"}
    dialect = KServeV1Dialect(
        instance="object", prompt_field="inputs", parameters=names, defaults={"do_sample": True}
    )
    assert sent(dialect, text(max_tokens=4))["instances"] == [
        {"inputs": "hi", "max_new_tokens": 4, "do_sample": True}
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_a_prediction_cannot_hold_is_refused(fields: dict[str, Any], param: str) -> None:
    """A prediction is one text: what asks for more is refused by name, or dropped."""
    with pytest.raises(InvalidRequest) as refused:
        KServeV1Dialect().request(chat(**fields))
    assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")
    assert param not in sent(KServeV1Dialect(unsupported="drop"), chat(**fields))["instances"][0]


def test_a_text_model_knows_no_parameters_by_itself() -> None:
    """What a plain text model would ignore is refused."""
    with pytest.raises(InvalidRequest) as refused:
        KServeV1Dialect(instance="text").request(text(temperature=0.5))
    assert refused.value.param == "temperature"


def test_a_prediction_of_our_predictor() -> None:
    """Text, reason and usage of a prediction arrive, under the client's name of the model."""
    value = answer(KServeV1Dialect(), chat(), OURS)
    assert value["model"] == "tiny"
    assert value["choices"][0]["message"]["content"] == "Hello"
    assert value["choices"][0]["finish_reason"] == "length"
    assert value["usage"] == USAGE


def test_usage_of_choices() -> None:
    """A prompt counts once for all of its choices, what was generated counts each time."""
    value = answer(KServeV1Dialect(), text(prompt=["a", "b"], n=2), OURS, OURS, OURS, OURS)
    assert [choice["index"] for choice in value["choices"]] == [0, 1, 2, 3]
    assert value["usage"]["prompt_tokens"] == 6
    assert value["usage"]["completion_tokens"] == 8
    assert value["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


@pytest.mark.parametrize(
    "prediction",
    ["Hello", ["Hello"], {"generated_text": "Hello"}, [{"generated_text": "Hello", "score": 1}]],
)
def test_predictions_of_others(prediction: Any) -> None:
    """A prediction is a text, or an object with it in the field that is configured."""
    dialect = KServeV1Dialect(text_field="generated_text")
    value = answer(dialect, text(), prediction)
    assert value["choices"][0]["text"] == "Hello"
    assert value["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in value


def test_a_repeated_prompt_is_taken_off() -> None:
    """Where predictions repeat their prompts, each loses its own."""
    dialect = KServeV1Dialect(instance="text", strip_prompt=True)
    value = answer(dialect, text(prompt=["a", "b"], n=2), "a1", "a2", "b1", "a3")
    assert [choice["text"] for choice in value["choices"]] == ["1", "2", "1", "a3"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"predictions": 1}',
        b'{"predictions": []}',
        b'{"predictions": ["a", "b"]}',
        b'{"predictions": [{"score": 1}]}',
        b'{"predictions": [null]}',
        b'{"predictions": [{"text": 1}]}',
    ],
)
def test_no_predictions(body: bytes) -> None:
    """What holds no text for each instance cannot be understood, as an answer or as a stream."""
    with pytest.raises(BadGateway) as broken:
        KServeV1Dialect().answer(text(), OK, body)
    assert broken.value.code == "upstream_invalid_response"
    with pytest.raises(BadGateway):
        fed(KServeV1Dialect().stream(text()), body)


def test_an_error_under_200() -> None:
    """An error under 200 is one, and its text stays inside."""
    with pytest.raises(BadGateway) as failed:
        KServeV1Dialect().answer(text(), OK, b'{"error": "/secret"}')
    assert (failed.value.code, "secret" in failed.value.message) == ("upstream_error", False)


@given(st.lists(st.integers(0, 120), max_size=6))
def test_any_cut_of_an_answer_is_the_same_stream(cuts: list[int]) -> None:
    """However an answer is cut, the same stream comes out, with its reason and its usage."""
    call = chat(stream=True, stream_options={"include_usage": True})
    data = fed(KServeV1Dialect().stream(call), *pieces(predicted(OURS), cuts))
    assert (contents(data), reason(data)) == ("Hello", "length")
    *_, usage, last = events_of(data.decode())
    assert (usage["usage"], last) == (USAGE, "[DONE]")


def test_a_stream_of_choices() -> None:
    """Each choice gets its text and its reason under its index."""
    data = fed(KServeV1Dialect().stream(text(n=2)), predicted(OURS, {**OURS, "text": "Ho"}))
    choices = [event["choices"][0] for event in events_of(data.decode())[:-1]]
    assert [(choice["index"], choice["text"]) for choice in choices] == [
        (0, "Hello"),
        (0, ""),
        (1, "Ho"),
        (1, ""),
    ]


def test_an_endless_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is not collected past the limit."""
    monkeypatch.setattr("openai_proxy.dialects.collected.MAX_BYTES", 10)
    parser = KServeV1Dialect().stream(text())
    parser.feed(b"x" * 11)
    assert parser.is_complete
    with pytest.raises(BadGateway):
        parser.finish()


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("instances[0].temperature", "temperature"),
        ("instances[1].messages[0].content", "messages[0].content"),
        ("instances[0]", None),
        ("instances", None),
        ("parameters.temperature", "temperature"),
        ("model", "model"),
        (None, None),
    ],
)
def test_errors_name_the_clients_field(param: str | None, expected: str | None) -> None:
    """An error about an instance's field names the field that the client has sent."""
    envelope = {"error": {"message": "m", "type": "t", "param": param, "code": "invalid_value"}}
    head = AnswerHead(400, "application/json", retry_after="4")
    error = KServeV1Dialect().error(head, json.dumps(envelope).encode())
    told = json.loads(error.body())["error"]
    assert (error.status, told["code"], told["param"]) == (400, "invalid_value", expected)
    assert error.headers() == {"retry-after": "4"}


@given(st.integers(400, 599), st.binary(max_size=60))
def test_any_error_is_an_envelope(status: int, body: bytes) -> None:
    """Whatever an upstream says, an error with a code comes out."""
    error = KServeV1Dialect().error(AnswerHead(status, ""), body)
    assert isinstance(error, ApiError)
    assert error.code


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        (None, b'{"models": ["a", "b"]}', ("a", "b")),
        (None, b'{"object": "list", "data": [], "models": ["a"]}', ("a",)),
        (None, b'{"models": []}', ()),
        (None, b"[]", None),
        (None, b"", None),
        ("a", b'{"name": "a", "ready": true}', ("a",)),
        ("a", b'{"name": "a", "ready": "True"}', ("a",)),
        ("a", b'{"id": "a", "object": "model"}', ("a",)),
        ("a", b'{"name": "a", "ready": false}', ()),
        ("a", b"no", None),
    ],
)
def test_models(model: str | None, body: bytes, expected: tuple[str, ...] | None) -> None:
    """The list's names, or the one model that was asked for, if it is ready."""
    assert KServeV1Dialect(model=model).models(body) == expected


def test_where_readiness_is_seen() -> None:
    """The list is asked, or the one model that is named."""
    assert KServeV1Dialect().models_path == "/models"
    assert KServeV1Dialect(model="a/b").models_path == "/models/a%2Fb"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with kserve_server() as running:
        yield running


@pytest.fixture
async def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[harness.Proxy]:
    async with proxy_for(KServeV1Dialect(), server.url, monkeypatch) as running:
        yield running


@pytest.fixture
async def client(proxy: harness.Proxy) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def test_the_official_client(client: AsyncOpenAI, server: Server) -> None:
    """The official client gets a chat through KServe's V1."""
    answer = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], temperature=0
    )
    assert answer.choices[0].message.content == "HI!"
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == MODEL
    assert server.paths == ["/v1/models/m%2F1%20%C3%A9:predict"]
    assert server.bodies[0]["instances"][0]["temperature"] == 0


async def test_the_official_client_streams(client: AsyncOpenAI) -> None:
    """A stream has the whole answer, its reason and its usage."""
    stream = await client.completions.create(
        model=MODEL, prompt=["a", "b"], seed=4, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [(chunk.choices[0].index, chunk.choices[0].text) for chunk in chunks if chunk.choices]
    assert texts == [(0, "A!4"), (0, ""), (1, "B!4"), (1, "")]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 2


async def test_an_unknown_model(client: AsyncOpenAI) -> None:
    """A model that the server does not have is OpenAI's 404, also for a stream."""
    for is_stream in (False, True):
        with pytest.raises(NotFoundError) as refused:
            await client.completions.create(model="other", prompt="a", stream=is_stream)
        assert refused.value.code == "model_not_found"


async def test_the_proxy_is_ready(proxy: harness.Proxy) -> None:
    """The list of models is where the proxy sees that its upstream is ready."""
    status, value = await proxy.get("/health/ready")
    assert status == 200, value


async def test_a_model_that_is_not_ready(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model named, the proxy is as ready as that model."""
    server.is_ready = False
    async with proxy_for(KServeV1Dialect(model=MODEL), server.url, monkeypatch) as proxy:
        assert (await proxy.get("/health/ready"))[0] == 503
        server.is_ready = True
        await harness.until(lambda: _is_ready(proxy))


async def _is_ready(proxy: harness.Proxy) -> bool:
    return (await proxy.get("/health/ready"))[0] == 200


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_breaks_off(
    proxy: harness.Proxy, server: Server, is_stream: bool
) -> None:
    """An answer that is cut off is no answer: its client gets an error with a status."""

    async def cut_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.content_length = 100
        await response.prepare(request)
        await response.write(b'{"predictions": ["a')
        assert request.transport is not None
        request.transport.close()
        return response

    server.respond = cut_off
    status, value = await proxy.chat(model=MODEL, stream=is_stream)
    assert (status, value["error"]["type"]) == (502, "server_error")


async def test_a_client_that_leaves(proxy: harness.Proxy, server: Server) -> None:
    """A client that leaves while it waits for its stream is not worked for any more."""

    async def never(_: Any) -> Any:
        await asyncio.Event().wait()

    server.respond = never
    waiting = asyncio.create_task(proxy.chat(model=MODEL, stream=True))
    await server.began.wait()
    waiting.cancel()
    await asyncio.wait_for(server.closed.wait(), 5)


def test_copies_of_a_prompt_are_bounded() -> None:
    """Where each choice takes its prompt anew, a large one cannot be asked for many times."""
    large = b"x" * (1 << 20)
    with pytest.raises(InvalidRequest) as caught:
        KServeV1Dialect().request(dataclasses.replace(text(n=17), body=large))
    assert caught.value.param == "n"
    assert KServeV1Dialect().request(dataclasses.replace(text(n=16), body=large))
