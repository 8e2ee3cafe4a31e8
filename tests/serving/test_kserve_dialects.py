"""KServe's protocols through the proxy: its own server, then our predictor with the real model."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from openai_proxy.dialects.base import Dialect
from openai_proxy.dialects.kserve_v1 import KServeV1Dialect
from openai_proxy.dialects.kserve_v2 import KServeV2Dialect
from tests.processes import START_SECONDS, Predictor, Server
from tests.proxy.harness import refused_port, until
from tests.proxy.standin.served import proxy_for
from tests.proxy.translating import render

SCRIPT = Path(__file__).with_name("kserve_text_server.py")
NAME = "shouter"


@contextlib.asynccontextmanager
async def client_of(
    dialect: Dialect, url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client of a proxy in front of an upstream, once the proxy sees it ready."""
    async with (
        proxy_for(dialect, url, monkeypatch) as proxy,
        openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as client,
    ):

        async def is_ready() -> bool:
            return (await proxy.get("/health/ready"))[0] == 200

        await until(is_ready, seconds=30)
        yield client


@pytest.fixture(scope="module")
def kserve() -> Iterator[str]:
    """The URL of KServe's own server, which takes seconds to start."""
    port = refused_port()
    url = f"http://127.0.0.1:{port}"
    with Server([sys.executable, str(SCRIPT), f"--http_port={port}"]):
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(f"{url}/v1/models/{NAME}"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield url


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return httpx2.get(url).status_code == 200
    return False


V1 = KServeV1Dialect(render, instance="text", model=NAME)
V2 = KServeV2Dialect(render, model=NAME, parameters={"temperature": "temperature"})
BINARY = KServeV2Dialect(render, defaults={"binary_data_output": True})


@pytest.mark.parametrize("dialect", [V1, V2, BINARY], ids=["v1", "v2", "v2-binary"])
async def test_kserves_own_server(
    kserve: str, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KServe's server understands what it is asked, and is understood, whole and as a stream."""
    async with client_of(dialect, kserve, monkeypatch) as client:
        answer = await client.completions.create(model=NAME, prompt=["é", "b\nc"], n=2)
        texts = [choice.text for choice in answer.choices]
        assert texts == ["É!", "É!", "B\nC!", "B\nC!"]
        messages: Any = [{"role": "user", "content": "hi"}]
        stream = await client.chat.completions.create(model=NAME, messages=messages, stream=True)
        chunks = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(chunks) == "<USER>HI<ASSISTANT>!"
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.completions.create(model="no/such", prompt="a")
        assert unknown.value.code == "model_not_found"


async def test_a_failure_inside_kserves_server(
    kserve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model raises on KServe's server is a 502 that does not tell it."""
    async with client_of(V2, kserve, monkeypatch) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            await client.completions.create(model=NAME, prompt="a", temperature=2)
        assert failed.value.status_code == 502
        assert "secret" not in failed.value.message


@pytest.fixture(scope="module")
def predictor(model_path: Path) -> Iterator[Predictor]:
    """A running predictor with the real model."""
    with Predictor(model_path) as running:
        yield running.ready()


@pytest.mark.model
async def test_our_predictors_v1(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through V1 a chat has the prompt, the text and the reason that OpenAI's route gives it."""
    ask: dict[str, Any] = {
        "model": "smollm2",
        "messages": [
            {"role": "user", "content": "Repeat after me: Paris is the capital of France."}
        ],
        "max_tokens": 4,
        "temperature": 0,
    }
    async with (
        openai.AsyncOpenAI(base_url=f"{predictor.url}/v1", api_key="unused") as direct,
        client_of(KServeV1Dialect(), predictor.url, monkeypatch) as client,
    ):
        expected = await direct.chat.completions.create(**ask)
        answer = await client.chat.completions.create(**ask)
        assert answer.choices[0].message.content == expected.choices[0].message.content
        assert answer.choices[0].finish_reason == expected.choices[0].finish_reason
        assert answer.usage is not None
        assert expected.usage is not None
        assert answer.usage.total_tokens == expected.usage.total_tokens
        options: Any = {"include_usage": True}
        stream = await client.chat.completions.create(**ask, stream=True, stream_options=options)
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == expected.usage.completion_tokens


@pytest.mark.model
async def test_choices_of_our_predictors_v1(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices of one seed differ from each other, and are the same when asked for again."""
    ask: dict[str, Any] = {"model": "smollm2", "prompt": "Once", "n": 3, "seed": 5}
    async with client_of(KServeV1Dialect(), predictor.url, monkeypatch) as client:
        first, again = [
            await client.completions.create(**ask, max_tokens=6, temperature=1.5) for _ in range(2)
        ]
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) == 3
    assert [choice.text for choice in again.choices] == texts


@pytest.mark.model
async def test_errors_of_our_predictors_v1(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the predictor refuses names the field that the client has sent."""
    async with client_of(KServeV1Dialect(), predictor.url, monkeypatch) as client:
        with pytest.raises(openai.BadRequestError) as too_long:
            await client.completions.create(model="smollm2", prompt="long " * 9000)
        assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "prompt")
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.completions.create(model="no-such", prompt="a")
        assert unknown.value.code == "model_not_found"
