"""shimmy itself with a tiny model: its dialect on both paths, and its backend.

It computes by Vulkan, which a driver for CPUs (Mesa's llvmpipe) has, too, slowly.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from aiohttp import ClientSession

from tests.predictor.tiny_models import write_tiny_model
from tests.proxy.harness import CHAT, Proxy, until
from tests.proxy.processes import Process, alive, process, run
from tests.proxy.real.peers import before, content, error, needs, program, reason
from tests.proxy.test_backend_kinds import last_words, report_of
from tests.proxy.translating import ends, events_of, said, usage

NAME = "shimmy"
MODEL = "tiny"
START_SECONDS = 300
GREEDY = {"temperature": 0, "max_tokens": 5}

REQUANTIZE = """
import sys, llama_cpp
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype, settings.allow_requantize, settings.nthread = 7, True, 1  # Q8_0
sys.exit(llama_cpp.llama_model_quantize(*map(str.encode, sys.argv[1:]), settings))
"""

pytestmark = [pytest.mark.model, needs(NAME), pytest.mark.timeout(START_SECONDS + 60)]


def flags(model: Path, start_seconds: int = START_SECONDS) -> list[str]:
    """The flags of a proxy that runs shimmy with this model."""
    values = {
        "backend": "shimmy",
        "backend-executable": program(NAME),
        "backend-startup-timeout": str(start_seconds),
        "model-path": str(model),
    }
    return [part for name, value in values.items() for part in (f"--{name}", value)]


def requantized(file: Path) -> Path:
    """Write the model's weights as Q8_0: shimmy takes no Q4_1."""
    written = file.with_name(f"{MODEL}.gguf")
    # in a process of its own: llama.cpp writes a lot, and llama-cpp-python leaves files open
    subprocess.run([sys.executable, "-c", REQUANTIZE, str(file), str(written)], check=True)
    return written


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    folder = tmp_path_factory.mktemp("shimmy")
    model = requantized(write_tiny_model(folder, "llama"))
    async with process(folder, *flags(model), "--health", "superset") as proxy:
        await until(lambda: proxy.answers("/health/ready"), START_SECONDS, every=0.5)
        yield proxy
        below = [child.pid for child in psutil.Process(proxy.pid).children(recursive=True)]
        assert await proxy.end(seconds=30) == 0
        assert alive(*below) == []


@pytest.fixture(params=["/v1/chat/completions", "/api/generate"])
async def proxy(backend: Process, request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    report = await report_of(backend)
    options = {"upstream_options": {"path": request.param}}
    async with before(report["url"], "shimmy", **options) as running:
        yield running


async def test_the_backend(backend: Process) -> None:
    """It is started, warmed up, and answers under its own name for the model."""
    report = await report_of(backend)
    assert (report["status"], report["name"], report["model"]) == ("ready", "shimmy", MODEL)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **GREEDY}
    async with ClientSession() as http, http.post(backend.url + CHAT, json=body) as response:
        assert content(await response.json())


async def test_a_chat(proxy: Proxy) -> None:
    """An answer has its text, its limit and its usage, on either path."""
    status, answer = await proxy.chat(model=MODEL, **GREEDY)
    assert (status, reason(answer)) == (200, "length")
    assert answer["usage"]["completion_tokens"] == 5


async def test_a_stream(proxy: Proxy) -> None:
    """A stream says what the whole answer says."""
    asked: dict[str, Any] = {"model": MODEL, **GREEDY}
    _, answer = await proxy.chat(**asked)
    events = events_of(await proxy.stream(**asked))
    assert said(events) == content(answer)
    assert events[-1] == "[DONE]"


async def test_a_counted_stream(backend: Process) -> None:
    """A chat's stream tells its limit and its usage."""
    report = await report_of(backend)
    async with before(report["url"], "shimmy") as proxy:
        asked = {"model": MODEL, **GREEDY, "stream_options": {"include_usage": True}}
        events = events_of(await proxy.stream(**asked))
    assert ends(events) == ["length"]
    assert usage(events)[1] == 5


async def test_a_text(proxy: Proxy) -> None:
    """A text completion's prompt is put into no chat template: it has a token a letter."""
    body = {"model": MODEL, "prompt": "xyz", **GREEDY}
    async with proxy.http.post(f"{proxy.url}/v1/completions", json=body) as response:
        answer = await response.json()
    assert answer["usage"]["prompt_tokens"] == 3
    body["stream"] = True
    async with proxy.http.post(f"{proxy.url}/v1/completions", json=body) as response:
        assert said(events_of(await response.text())) == content(answer)


async def test_a_stop_string(backend: Process) -> None:
    """A stop string of several tokens, which shimmy would not see, ends a chat."""
    report = await report_of(backend)
    async with before(report["url"], "shimmy") as proxy:
        _, whole = await proxy.chat(model=MODEL, temperature=0, max_tokens=12)
        stop = content(whole)[3:6]
        asked = {"model": MODEL, "temperature": 0, "max_tokens": 12, "stop": stop}
        _, answer = await proxy.chat(**asked)
        streamed = events_of(await proxy.stream(**asked))
    assert (content(answer), reason(answer)) == (content(whole).partition(stop)[0], "stop")
    assert (said(streamed), ends(streamed)) == (content(answer), ["stop"])


async def test_an_unknown_model(proxy: Proxy) -> None:
    """It is 404 with the field, streamed or not, with a body or without."""
    for is_stream in (False, True):
        status, answer = await proxy.chat(model="nope", stream=is_stream)
        assert (status, error(answer)) == (404, ("model_not_found", "model"))


async def test_what_it_would_ignore(proxy: Proxy) -> None:
    """What it would ignore without a word is refused by its name."""
    for field, value in (("n", 2), ("seed", 7), ("logprobs", True)):
        status, answer = await proxy.chat(model=MODEL, **{field: value})
        assert (status, error(answer)) == (400, ("unsupported_parameter", field))


async def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    """It starts all the same and answers 502: the proxy gives up when its time is over."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    code, _, err = await run("--port", "0", *flags(broken, start_seconds=8))
    assert code == 1, err
    assert "--backend-startup-timeout" in last_words(err)
