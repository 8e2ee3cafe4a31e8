"""llama-cpp-python's own server: the `openai` dialect, and the `command` backend."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession

from tests.proxy.harness import CHAT, Proxy, refused_port, until
from tests.proxy.processes import alive, process
from tests.proxy.real.peers import before, content, error, needs, program, reason, running
from tests.proxy.translating import ends, events_of, said

NAME = "llama-cpp-server"
SERVER = program(NAME)
COMPLETIONS = "/v1/completions"
TOO_LONG = "hello " * 3000
# Any other request ends a running stream as if it were whole, also one for the list of models,
# unless it is told to let them wait.
UNCUT = ("--interrupt_requests", "False")

pytestmark = [pytest.mark.model, needs(NAME)]


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[str]:
    port = refused_port()
    command = (SERVER, "--model", str(model_path), "--model_alias", "small", "--n_ctx", "512")
    place = ("--n_threads", "1", "--host", "127.0.0.1", "--port", str(port))
    with running(*command, *place, *UNCUT, port=port, ready="/v1/models") as url:
        yield url


@pytest.fixture
async def proxy(server: str) -> AsyncIterator[Proxy]:
    async with before(server, "openai", probe_interval_seconds=0) as running:
        yield running


async def complete(proxy: Proxy, **fields: Any) -> tuple[int, Any]:
    """Post a text completion; returns status and decoded body."""
    body = {"model": "small", **fields}
    async with proxy.http.post(proxy.url + COMPLETIONS, json=body) as response:
        return response.status, await response.json()


async def test_a_chat(proxy: Proxy) -> None:
    """An answer has its text, its end and its usage."""
    status, answer = await proxy.chat(model="small", max_tokens=3, temperature=0, seed=1)
    assert (status, reason(answer)) == (200, "length")
    assert content(answer)
    assert answer["usage"]["completion_tokens"] == 3


async def test_a_stream(proxy: Proxy) -> None:
    """A stream says what the whole answer says; its lines end with CRLF, and it has no usage."""
    asked = {"model": "small", "max_tokens": 6, "temperature": 0, "seed": 1}
    _, answer = await proxy.chat(**asked)
    stream = await proxy.stream(**asked, stream_options={"include_usage": True})
    events = events_of(stream)
    assert (said(events), ends(events)) == (content(answer), ["length"])
    assert events[-1] == "[DONE]"
    assert not any(event.get("usage") for event in events[:-1])


async def test_a_stop_string(proxy: Proxy) -> None:
    """A stop string ends a text, and is no part of it."""
    asked = {"prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 20, "temperature": 0}
    status, answer = await complete(proxy, **asked, stop=["9"])
    assert (status, reason(answer)) == (200, "stop")
    assert "8" in content(answer)
    assert "9" not in content(answer)


async def test_a_prompt_that_is_too_long(proxy: Proxy) -> None:
    """Its own error passes; of a stream it just hangs up, which is told as an error, too."""
    status, answer = await complete(proxy, prompt=TOO_LONG, max_tokens=5)
    assert (status, error(answer)) == (400, ("context_length_exceeded", "messages"))
    status, answer = await complete(proxy, prompt=TOO_LONG, max_tokens=5, stream=True)
    assert (status, error(answer)) == (502, ("upstream_stream_broken", None))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": "x"}, ("invalid_type", "max_tokens")),
        ({"temperature": 9}, ("decimal_above_max_value", "temperature")),
        ({"messages": []}, ("empty_messages", "messages")),
    ],
)
async def test_bad_input(proxy: Proxy, fields: Any, expected: tuple[str, str]) -> None:
    """What it answers with 500, or takes as if it were good, the proxy refuses by its name."""
    status, answer = await proxy.chat(model="small", **fields)
    assert (status, error(answer)) == (400, expected)


async def test_a_failure_inside(proxy: Proxy) -> None:
    """Its text, which tells of the inside, is not passed."""
    async with proxy.http.post(
        proxy.url + "/v1/embeddings", json={"model": "small", "input": "x"}
    ) as response:
        answer = await response.json()
    assert (response.status, error(answer)) == (502, ("upstream_error", None))
    assert "Llama" not in answer["error"]["message"]


async def test_the_backend(tmp_path: Path, model_path: Path) -> None:
    """As a `command` it is started, serves under the name that it was given, and ends."""
    command = (
        f"{shlex.quote(SERVER)} --model {{model_path}} --model_alias {{model_name}} "
        "--host {host} --port {port} --n_ctx 512 --n_threads 1"
    )
    flags = ("--backend", "command", "--backend-command", command, "--model-name", "small")
    health = ("--model-path", str(model_path), "--backend-health-path", "/v1/models")
    async with process(tmp_path, *flags, *health) as proxy, ClientSession() as http:
        await until(lambda: proxy.answers("/health/ready"), 60)
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        async with http.post(proxy.url + CHAT, json=body) as response:
            assert (await response.json())["usage"]["completion_tokens"] == 2
        below = [child.pid for child in psutil.Process(proxy.pid).children(recursive=True)]
        assert await proxy.end() == 0
        assert alive(*below) == []
