"""vLLM itself, on a CPU, with random weights: the `openai` dialect, and the `vllm` backend."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from aiohttp import ClientSession

from tests.proxy.harness import CHAT, MESSAGES, Proxy, until
from tests.proxy.processes import Process, alive, process
from tests.proxy.real import tiny_llama
from tests.proxy.real.peers import before, content, error, needs, program, reason
from tests.proxy.test_backend_kinds import last_words, report_of
from tests.proxy.translating import ends, events_of, said, usage

NAME = "vllm"
START_SECONDS = 400
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",  # in the tests they are errors
    "PYTHONPATH": "",
}
SMALL = ("--load-format", "dummy", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4")

pytestmark = [needs(NAME), pytest.mark.timeout(START_SECONDS + 60)]


def flags(model: Path) -> list[str]:
    """The flags of a proxy that runs vLLM with this model."""
    values = {
        "backend": "vllm",
        "backend-executable": program(NAME),
        "backend-env": json.dumps(ENVIRONMENT),
        "backend-startup-timeout": str(START_SECONDS),
        "model-path": str(model),
        "model-name": "tiny",
    }
    ours = [part for name, value in values.items() for part in (f"--{name}", value)]
    return [*ours, "--", *SMALL]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    folder = tmp_path_factory.mktemp("vllm")
    model = tiny_llama.write(folder / "tiny")
    async with process(folder, *flags(model), "--health", "superset") as proxy:
        await until(lambda: proxy.answers("/health/ready"), START_SECONDS, every=0.5)
        yield proxy
        below = [child.pid for child in psutil.Process(proxy.pid).children(recursive=True)]
        assert await proxy.end(seconds=60) == 0
        assert alive(*below) == []


@pytest.fixture
async def proxy(backend: Process) -> AsyncIterator[Proxy]:
    async with ClientSession() as http, http.get(f"{backend.url}/health") as response:
        url = (await response.json())["backend"]["url"]
    async with before(url, "openai") as running:
        yield running


async def test_the_backend(backend: Process) -> None:
    """It takes our command line, is seen to be ready, and answers under our name; then it ends."""
    report = await report_of(backend)
    assert (report["status"], report["name"], report["model"]) == ("ready", "vllm", "tiny")
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
    async with ClientSession() as http, http.post(backend.url + CHAT, json=body) as response:
        assert (await response.json())["usage"]["completion_tokens"] == 2


async def test_a_stream(proxy: Proxy) -> None:
    """A stream says what the whole answer of the same seed says, with the same usage."""
    asked = {"max_tokens": 8, "temperature": 1, "seed": 7}
    _, answer = await proxy.chat(**asked)
    events = events_of(await proxy.stream(**asked, stream_options={"include_usage": True}))
    assert (said(events), ends(events)) == (content(answer), [reason(answer)])
    told = answer["usage"]
    assert usage(events) == (told["prompt_tokens"], told["completion_tokens"])
    assert events[-1] == "[DONE]"


async def test_several_choices(proxy: Proxy) -> None:
    """Choices, their logprobs and token ids as a prompt all pass."""
    body = {"model": "tiny", "prompt": [40, 41], "n": 2, "logprobs": 1, "max_tokens": 2}
    async with proxy.http.post(f"{proxy.url}/v1/completions", json=body) as response:
        answer = await response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 2


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "nope"}, 404),
        ({"messages": [{"role": "user", "content": "x" * 999}]}, 400),
        ({"top_logprobs": 3}, 400),
        ({"response_format": {"type": "what"}}, 400),
    ],
)
async def test_its_errors_pass(
    proxy: Proxy, fields: dict[str, Any], status: int, is_stream: bool
) -> None:
    """What it refuses arrives with its status, in OpenAI's form, streamed or not."""
    got, answer = await proxy.chat(**fields, stream=is_stream)
    assert got == status, answer
    assert answer["error"]["message"]
    assert error(answer)[0]


async def test_no_such_model(tmp_path: Path) -> None:
    """A folder without a model stops the proxy with code 4 and vLLM's own words."""
    folder = tmp_path / "empty"
    folder.mkdir()
    async with process(tmp_path, *flags(folder), wait_for="") as proxy:
        code = await asyncio.wait_for(proxy.process.wait(), START_SECONDS)
        log = proxy.log.read_text()
    assert code == 4, log
    assert "--model-path" in last_words(log)
