"""The whole path: the official client, the proxy, the KServe server, the engine, the real model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from tests.processes import Proxy, Server, descendants

pytestmark = pytest.mark.model

STORY: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Write a long story about a fox."}],
    "extra_body": {"ignore_eos": True},
    "seed": 7,
}


@pytest.fixture(scope="module")
def proxy(model_path: Path) -> Iterator[Proxy]:
    """A running proxy with its predictor; whoever kills or drains one starts one of their own."""
    with Proxy(model_path, "--log-level=debug") as server:
        yield server.ready()


@contextlib.asynccontextmanager
async def connect(server: Proxy) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=90
    ) as client:
        yield client


async def test_several_clients_stream_and_not(proxy: Proxy) -> None:
    """Streams and whole answers side by side agree: greedy text is the same through both."""
    async with connect(proxy) as client:

        async def whole() -> str:
            answer = await client.chat.completions.create(**STORY, max_tokens=12, temperature=0)
            return answer.choices[0].message.content or ""

        async def streamed() -> str:
            stream = await client.chat.completions.create(
                **STORY, max_tokens=12, temperature=0, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

        texts = await asyncio.gather(whole(), streamed(), whole(), streamed())
        assert texts[0]
        models = await client.models.list()
        assert [model.id for model in models.data] == ["smollm2"]
        completion = await client.completions.create(model="smollm2", prompt="One", max_tokens=2)
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 2


async def test_choices_and_logprobs_go_through(proxy: Proxy) -> None:
    """Every parameter passes the proxy; choices and logprobs come back, streamed or not."""
    ask = {
        **STORY,
        "n": 2,
        "max_tokens": 8,
        "temperature": 1.5,
        "logprobs": True,
        "top_logprobs": 2,
        "extra_body": {"ignore_eos": True, "dry_multiplier": 0.5, "xtc_probability": 0.1},
    }
    async with connect(proxy) as client:
        whole = await client.chat.completions.create(**ask)
        chunks = [c async for c in await client.chat.completions.create(**ask, stream=True)]
        best = await client.completions.create(
            model="smollm2", prompt="One", max_tokens=2, n=2, best_of=3, logprobs=1, echo=False
        )
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    assert whole.usage.prompt_tokens_details is not None
    for index, choice in enumerate(whole.choices):
        own = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(c.delta.content or "" for c in own)
        assert own[-1].finish_reason == "length"
        assert choice.logprobs is not None
        assert len(choice.logprobs.content or []) == 8
        assert sum(len((c.logprobs and c.logprobs.content) or []) for c in own) == 8
    assert len(best.choices) == 2
    assert best.usage is not None
    assert best.usage.completion_tokens == 6


async def test_errors_of_the_predictor_arrive_as_they_are(proxy: Proxy) -> None:
    """What only the predictor can know is wrong reaches the client with its code and field."""
    async with connect(proxy) as client:
        with pytest.raises(openai.BadRequestError) as too_long:
            await client.completions.create(model="smollm2", prompt="long " * 9000)
        assert too_long.value.code == "context_length_exceeded"
        assert too_long.value.param == "prompt"
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.completions.create(model="no-such-model", prompt="a")
        assert unknown.value.code == "model_not_found"


async def test_one_request_id_from_client_to_engine(proxy: Proxy) -> None:
    """A request's id stands in the logs of the proxy, of the server and of the engine."""
    async with httpx2.AsyncClient(base_url=proxy.url, timeout=60) as http:
        answer = await http.post(
            "/v1/completions",
            json={"model": "smollm2", "prompt": "a", "max_tokens": 1},
            headers={"x-request-id": "whole-path-1"},
        )
    assert answer.headers.get_list("x-request-id") == ["whole-path-1"]
    proxy.wait_for("sequence_ended", request_id="whole-path-1", logger="engine")
    proxy.wait_for("request", request_id="whole-path-1", logger="access", backend="llamacpp")
    own = proxy.wait_for("request", request_id="whole-path-1", without="backend")
    assert own["status"] == 200


async def test_a_client_that_leaves_frees_the_engine(proxy: Proxy) -> None:
    """When a client of the proxy leaves in mid-stream, the engine stops computing for it."""
    async with connect(proxy) as client:
        stream = await client.chat.completions.create(
            **STORY, max_tokens=4000, stream=True, extra_headers={"x-request-id": "leaver"}
        )
        await anext(aiter(stream))
        await stream.close()
    end = await asyncio.to_thread(proxy.wait_for, "sequence_ended", seconds=10, request_id="leaver")
    assert end["end"] == "cancelled"


async def test_clients_with_keys_share_no_prefixes(proxy: Proxy) -> None:
    """What a client with one key has asked is not told to one with another, nor is its key."""
    ask = {"model": "smollm2", "prompt": "My card is 4111 1111 1111 1234, bye", "max_tokens": 1}
    cached = []
    async with httpx2.AsyncClient(base_url=proxy.url, timeout=90) as http:
        for key in ("alice", "bob", "alice"):
            headers = {"authorization": f"Bearer key-of-{key}"}
            answer = await http.post("/v1/completions", json=ask, headers=headers)
            cached.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached[:2] == [0, 0]
    assert cached[2] > 10


async def test_killed_engine(proxy: Proxy) -> None:
    """SIGKILL of the engine under a stream through the proxy: the stream goes on to its end."""
    async with connect(proxy) as client:
        stream = await client.chat.completions.create(**STORY, max_tokens=40, stream=True)
        chunks = aiter(stream)
        for _ in range(8):
            await anext(chunks)
        proxy.find("kserve_llamacpp.engine.worker").kill()
        async with asyncio.timeout(60):
            rest = [chunk async for chunk in chunks]
        assert rest[-1].choices[0].finish_reason == "length"


async def test_killed_predictor(proxy: Proxy) -> None:
    """SIGKILL of the predictor under load: what has begun ends with an error, nothing else does.

    Requests that had got no byte, and those that come while it is started again, are answered.
    """
    async with connect(proxy) as client:

        async def ask(max_tokens: int) -> int:
            answer = await client.chat.completions.create(**STORY, max_tokens=max_tokens)
            assert answer.usage is not None
            return answer.usage.completion_tokens

        stream = await client.chat.completions.create(**STORY, max_tokens=4000, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        asked = [asyncio.create_task(ask(25)) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in asked)
        proxy.find("kserve_llamacpp").kill()
        asked += [asyncio.create_task(ask(2)) for _ in range(3)]
        with pytest.raises(openai.APIError) as error:
            async with asyncio.timeout(20):
                _ = [chunk async for chunk in chunks]
        assert error.value.code == "upstream_stream_broken"
        asked += [asyncio.create_task(ask(2)) for _ in range(3)]
        assert await asyncio.gather(*asked) == [25] * 10 + [2] * 6


async def test_sigterm_under_a_stream(model_path: Path) -> None:
    """SIGTERM: the stream ends as it should, then everything is gone, status 0."""
    with Proxy(model_path, "--grace-seconds=60") as server:
        server.ready()
        family = descendants(server.pid)
        assert len(family) >= 3
        async with connect(server) as client:
            stream = await client.chat.completions.create(**STORY, max_tokens=30, stream=True)
            chunks = aiter(stream)
            await anext(chunks)
            server.signal(signal.SIGTERM)
            rest = [chunk async for chunk in chunks]
        assert rest[-1].choices[0].finish_reason == "length"
        assert await asyncio.to_thread(server.exit_status) == 0
        assert psutil.wait_procs(family, timeout=5)[1] == []


def test_killed_proxy_leaves_nothing(model_path: Path) -> None:
    """SIGKILL of the proxy: predictor, engine and guard are gone, too."""
    with Proxy(model_path) as server:
        server.ready()
        family = descendants(server.pid)
        server.signal(signal.SIGKILL)
        assert psutil.wait_procs(family, timeout=10)[1] == []


def test_start_that_cannot_work(tmp_path: Path) -> None:
    """A file that is no GGUF ends the proxy with the predictor's status and its message."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model")
    with Proxy(file) as server:
        assert server.exit_status() == 4
        assert "is not a GGUF file" in "".join(server.text)


def test_make_serve_and_ctrl_c(tmp_path: Path) -> None:
    """`make serve` prints a curl line and the SDK's lines, which work; Ctrl-C ends everything."""
    with Server(["make", "serve", "PORT=0"], new_session=True) as server:
        server.wait_for_text("print(client.chat.completions.create(")
        text = "".join(server.text)
        curl = next(line.strip() for line in text.splitlines() if line.strip().startswith("curl "))
        answer = subprocess.run(["sh", "-c", curl], capture_output=True, timeout=60, check=True)
        assert b'"chat.completion"' in answer.stdout
        python = text[text.index("  from openai import OpenAI") :].splitlines()[:3]
        script = tmp_path / "chat.py"
        script.write_text("\n".join(line.strip() for line in python))
        said = subprocess.run(
            [".venv/bin/python", str(script)], capture_output=True, timeout=60, check=True
        )
        assert said.stdout.strip()
        family = descendants(server.pid)
        os.killpg(server.pid, signal.SIGINT)
        server.exit_status()
        assert psutil.wait_procs(family, timeout=5)[1] == []
