"""The `llama-server` backend with the real program, where there is one, and the real model."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from aiohttp import ClientSession

from tests.proxy.harness import CHAT, until
from tests.proxy.processes import alive, process, run
from tests.proxy.test_backend_kinds import last_words, report_of

LLAMA_SERVER = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server") or ""

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not LLAMA_SERVER, reason="no llama-server: give LLAMA_SERVER=FILE"),
]


def flags(model: Path, *arguments: str, **settings: str) -> list[str]:
    """The flags of a proxy that runs llama-server with this model."""
    values = {
        "backend": "llama-server",
        "backend-executable": LLAMA_SERVER,
        "model-path": str(model),
        "model-name": "small",
        **{name.replace("_", "-"): value for name, value in settings.items()},
    }
    ours = [part for name, value in values.items() for part in (f"--{name}", value)]
    return [*ours, "--", "-c", "512", "-t", "1", *arguments]


async def test_it_serves(tmp_path: Path, model_path: Path) -> None:
    """It loads, answers under our name, is started again when it dies, and ends in peace."""
    settings = flags(model_path, backend_backoff_seconds="0.1")
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 3,
    }
    async with process(tmp_path, *settings) as proxy, ClientSession() as http:
        await until(lambda: proxy.answers("/health/ready"), 60)
        report = await report_of(proxy)
        assert (report["name"], report["model"]) == ("llama-server", "small")
        async with http.post(proxy.url + CHAT, json=body) as response:
            answer = await response.json()
        assert answer["usage"]["completion_tokens"] == 3
        async with http.post(proxy.url + CHAT, json={**body, "stream": True}) as response:
            assert (await response.text()).endswith("data: [DONE]\n\n")
        async with http.get(f"{proxy.url}/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["small"]
        first = _server_below(proxy.pid)
        os.kill(first, signal.SIGKILL)
        await until(lambda: alive(first) == [], 5)
        await until(lambda: proxy.answers("/health/ready", 503), 5)
        await until(lambda: proxy.answers("/health/ready"), 60)
        second = _server_below(proxy.pid)
        assert await proxy.end() == 0
        assert alive(second) == []
        assert "[llama-server] " in proxy.log.read_text()


def _server_below(pid: int) -> int:
    children = psutil.Process(pid).children(recursive=True)
    (found,) = [child.pid for child in children if Path(LLAMA_SERVER).name == child.name()]
    return int(found)


async def test_a_flag_that_it_does_not_know(model_path: Path) -> None:
    """It stops the proxy with code 2 and llama-server's own words."""
    code, _, err = await run("--port", "0", *flags(model_path, "--no-such-flag"))
    assert code == 2, err
    assert "--no-such-flag" in last_words(err)
    assert err.count('"backend_starting"') == 1


async def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    """It stops the proxy with code 4 and llama-server's own words."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    code, _, err = await run("--port", "0", *flags(broken))
    assert code == 4, err
    assert "--model-path" in last_words(err)
    assert err.count('"backend_starting"') == 1
