"""Ollama itself with the real model: its own API by the `ollama` dialect, its /v1 by `openai`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.harness import Proxy, refused_port
from tests.proxy.real.peers import before, content, environment, error, needs, program, reason
from tests.proxy.real.peers import running as server_running
from tests.proxy.translating import ends, events_of, said, usage

NAME = "ollama"
MODEL = "small:latest"
SEEDED = {"temperature": 1, "seed": 5, "max_tokens": 8}
COUNT = "Count: 1, 2, 3, 4, 5, 6,"

pytestmark = [pytest.mark.model, needs(NAME)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ollama")
    folder.joinpath("Modelfile").write_text(f"FROM {model_path}\nPARAMETER num_ctx 512\n")
    port = refused_port()
    env = {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(folder / "models"),
        "HOME": str(folder),
    }
    with server_running(program(NAME), "serve", port=port, ready="/api/version", env=env) as url:
        create = [program(NAME), "create", "small", "-f", "Modelfile"]
        subprocess.run(create, cwd=folder, env=environment(env), check=True)
        yield url


@pytest.fixture(params=["ollama", "openai"])
async def proxy(server: str, request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    async with before(server, request.param) as running:
        yield running


@pytest.fixture
async def native(server: str) -> AsyncIterator[Proxy]:
    async with before(server, "ollama") as running:
        yield running


async def complete(proxy: Proxy, **fields: Any) -> tuple[int, Any]:
    """Post a text completion; returns status and decoded body."""
    body = {"model": MODEL, **fields}
    async with proxy.http.post(f"{proxy.url}/v1/completions", json=body) as response:
        return response.status, await response.json()


async def test_models(proxy: Proxy) -> None:
    """It is ready with its models, by their names with tags."""
    _, health = await proxy.get("/health")
    assert health["backend"]["models"] == [MODEL]


async def test_a_chat(proxy: Proxy) -> None:
    """An answer has its text, why it ends, and its usage."""
    status, answer = await proxy.chat(model=MODEL, max_tokens=4, temperature=0)
    assert (status, reason(answer)) == (200, "length")
    assert content(answer)
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens"] > 4


async def test_a_stream(proxy: Proxy) -> None:
    """A stream says what the whole answer of the same seed says, with the same usage."""
    _, answer = await proxy.chat(model=MODEL, **SEEDED)
    stream = await proxy.stream(model=MODEL, **SEEDED, stream_options={"include_usage": True})
    events = events_of(stream)
    assert (said(events), ends(events)) == (content(answer), ["length"])
    told = answer["usage"]
    assert usage(events) == (told["prompt_tokens"], told["completion_tokens"])
    assert events[-1] == "[DONE]"


async def test_a_text(native: Proxy) -> None:
    """A text completion, whole and streamed, goes on from its prompt; a stop string ends it.

    Its /v1 would put the prompt into the model's chat template.
    """
    asked = {"prompt": COUNT, "max_tokens": 20, "temperature": 0, "stop": ["9"]}
    status, answer = await complete(native, **asked)
    assert (status, reason(answer)) == (200, "stop")
    assert "8" in content(answer)
    assert "9" not in content(answer)
    body = {"model": MODEL, **asked, "stream": True}
    async with native.http.post(f"{native.url}/v1/completions", json=body) as response:
        assert said(events_of(await response.text())) == content(answer)


async def test_an_unknown_model(proxy: Proxy) -> None:
    """It is 404, streamed or not."""
    for is_stream in (False, True):
        status, answer = await proxy.chat(model="nope", stream=is_stream)
        assert status == 404
        assert "nope" in answer["error"]["message"]


async def test_json(native: Proxy) -> None:
    """A schema holds: what comes is JSON that has its fields."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    _, answer = await native.chat(model=MODEL, response_format=form, max_tokens=60, temperature=0)
    assert isinstance(json.loads(content(answer))["a"], bool)


async def test_thoughts_of_a_model_that_has_none(native: Proxy) -> None:
    """Its own refusal arrives with its text."""
    status, answer = await native.chat(model=MODEL, think=True, max_tokens=2)
    assert (status, error(answer)) == (400, ("upstream_error", None))
    assert "does not support thinking" in answer["error"]["message"]


async def test_tools_of_a_model_that_has_none(native: Proxy) -> None:
    """Its own refusal arrives with its text."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    status, answer = await native.chat(model=MODEL, tools=[tool], max_tokens=2)
    assert (status, error(answer)) == (400, ("upstream_error", None))
    assert "does not support tools" in answer["error"]["message"]


async def test_what_it_cannot_do(native: Proxy) -> None:
    """What it would ignore without a word is refused by its name."""
    for field, value in (("n", 2), ("logit_bias", {"1": 1}), ("best_of", 2)):
        status, answer = await native.chat(model=MODEL, **{field: value})
        assert (status, error(answer)) == (400, ("unsupported_parameter", field))


async def test_a_long_prompt(native: Proxy) -> None:
    """A prompt beyond the context is cut, and answered: no error tells of it."""
    long = [{"role": "user", "content": "hello " * 2000}]
    status, answer = await native.chat(model=MODEL, messages=long, max_tokens=2)
    assert status == 200
    assert answer["usage"]["prompt_tokens"] <= 512
