"""Triton itself, with two models of its Python backend: the `triton` and `kserve-v2` dialects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.harness import Proxy, refused_port
from tests.proxy.real.peers import before, content, error, needs, program, reason, running
from tests.proxy.translating import ends, events_of, said

NAME = "tritonserver"
MODELS = Path(__file__).with_name("triton_models")
TEMPLATE = {"upstream_chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}

pytestmark = needs(NAME, "triton")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = refused_port()
    place = (f"--http-port={port}", "--http-address=127.0.0.1")
    quiet = ("--allow-grpc=false", "--allow-metrics=false")
    command = (program(NAME), f"--model-repository={MODELS}", *place, *quiet)
    with running(*command, port=port, ready="/v2/health/ready") as url:
        yield url


@pytest.fixture
async def triton(server: str) -> AsyncIterator[Proxy]:
    async with before(server, "triton", **TEMPLATE) as proxy:
        yield proxy


@pytest.fixture
async def infer(server: str) -> AsyncIterator[Proxy]:
    options = {
        "model": "tensors",
        "input_tensor": "text_input",
        "parameters": "max_tokens,temperature,seed",
    }
    async with before(server, "kserve-v2", upstream_options=options, **TEMPLATE) as proxy:
        yield proxy


@pytest.fixture
async def generate(server: str) -> AsyncIterator[Proxy]:
    options = {"api": "generate", "model": "words"}
    async with before(server, "kserve-v2", upstream_options=options, **TEMPLATE) as proxy:
        yield proxy


def asks(words: str, model: str = "words", **fields: Any) -> dict[str, Any]:
    """A chat of these words."""
    return {"model": model, "messages": [{"role": "user", "content": words}], **fields}


async def test_models(triton: Proxy) -> None:
    """It is ready with the models that are loaded."""
    _, health = await triton.get("/health")
    assert sorted(health["backend"]["models"]) == ["tensors", "words"]


async def test_an_answer(triton: Proxy) -> None:
    """A whole answer is asked for as one, with its parameters."""
    status, answer = await triton.chat(**asks("one two three", max_tokens=2, temperature=0.5))
    assert (status, content(answer), reason(answer)) == (200, "ONE TWO ", "stop")


async def test_a_stream(triton: Proxy) -> None:
    """A stream comes word by word, and has its end and [DONE]."""
    events = events_of(await triton.stream(**asks("one two three", seed=7, stop="X")))
    assert (said(events), ends(events)) == ("ONE TWO THREE ", ["stop"])
    assert len([event for event in events if event != "[DONE]"]) >= 4
    assert events[-1] == "[DONE]"


async def test_a_stop_string(triton: Proxy) -> None:
    """A stop string at the end of what a model says is left out."""
    status, answer = await triton.chat(**asks("one two stop", stop="STOP "))
    assert (status, content(answer)) == (200, "ONE TWO ")
    events = events_of(await triton.stream(**asks("one two stop", stop="STOP ")))
    assert said(events) == "ONE TWO "


async def test_an_unknown_model(triton: Proxy) -> None:
    """It is 404 with the field, streamed or not."""
    for is_stream in (False, True):
        status, answer = await triton.chat(**asks("hi", model="nope", stream=is_stream))
        assert (status, error(answer)) == (404, ("model_not_found", "model"))


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_failure_inside(triton: Proxy, is_stream: bool) -> None:
    """What a model raises is an error without its traceback, though Triton calls it 400."""
    status, answer = await triton.chat(**asks("raise", stream=is_stream))
    assert (status, error(answer)) == (502, ("upstream_error", None))
    assert "model.py" not in str(answer)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_a_model_refuses(triton: Proxy, is_stream: bool) -> None:
    """An error that a model makes itself, for its client, arrives with its text."""
    status, answer = await triton.chat(**asks("fail", stream=is_stream))
    assert (status, error(answer)) == (400, ("upstream_error", None))
    assert answer["error"]["message"] == "failed inside"


async def test_a_failure_in_mid_stream(triton: Proxy) -> None:
    """What fails later ends the stream with an error, after what was said."""
    events = events_of(await triton.stream(**asks("one fail two")))
    assert said(events[:-1]) == "ONE "
    assert error(events[-1]) == ("upstream_error", None)


async def test_what_it_cannot_take(triton: Proxy) -> None:
    """Lists, which it refuses as parameters, and several choices never reach it."""
    for field, value in (("stop", ["a", "b"]), ("n", 2), ("logit_bias", {"1": 1})):
        status, answer = await triton.chat(**asks("hi", **{field: value}))
        assert (status, error(answer)[1]) == (400, field)


async def test_texts_as_tensors(infer: Proxy) -> None:
    """Prompts and choices are a tensor's elements; reasons and tokens come as tensors."""
    body = {"model": "tensors", "prompt": ["a b", "c"], "n": 2, "max_tokens": 3}
    async with infer.http.post(f"{infer.url}/v1/completions", json=body) as response:
        choices = (await response.json())["choices"]
    assert [choice["text"] for choice in choices] == ["A B", "A B", "C", "C"]
    status, answer = await infer.chat(**asks("one two", model="tensors"))
    assert (status, content(answer), reason(answer)) == (200, "ONE TWO", "length")
    assert answer["usage"]["total_tokens"] == 4


async def test_a_whole_answer_as_a_stream(infer: Proxy) -> None:
    """A client that asks for a stream gets the whole answer as one."""
    events = events_of(await infer.stream(**asks("one two", model="tensors")))
    assert (said(events), ends(events)) == ("ONE TWO", ["length"])


async def test_errors_of_tensors(infer: Proxy) -> None:
    """An unknown model is 404; what fails inside says nothing of it."""
    status, answer = await infer.chat(**asks("hi", model="nope"))
    assert (status, error(answer)) == (404, ("model_not_found", "model"))
    status, answer = await infer.chat(**asks("raise", model="tensors"))
    assert (status, error(answer)) == (502, ("upstream_error", None))
    assert "model.py" not in str(answer)


async def test_the_generate_extension(generate: Proxy) -> None:
    """The Open Inference Protocol's generate works with Triton's, too: whole, and as a stream."""
    status, answer = await generate.chat(**asks("one two", max_tokens=1))
    assert (status, content(answer)) == (200, "ONE ")
    events = events_of(await generate.stream(**asks("one two")))
    assert (said(events), events[-1]) == ("ONE TWO ", "[DONE]")
