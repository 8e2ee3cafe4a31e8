"""A supervised backend, by a stand-in that takes the predictor's command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from aiohttp import ClientSession

from openai_proxy.backends import guard
from tests.proxy.harness import CHAT, MESSAGES, until
from tests.proxy.processes import alive, environment, pids_in, process, run
from tests.proxy.test_errors import last_event

BODY = {"model": "tiny", "messages": MESSAGES, "stream": True}


def flags(*behaviour: str, **settings: str) -> list[str]:
    """The flags of a proxy with the stand-in as its backend."""
    values = {"backend": "llamacpp", "model-path": "/models/tiny.gguf", **settings}
    ours = [part for name, value in values.items() for part in (f"--{name}", value)]
    return [*ours, "--", *(part for item in behaviour for part in ("--standin", item))]


async def test_backend_is_started_and_warmed_up(tmp_path: Path) -> None:
    """The proxy starts the backend, warms it up, serves through it, and stops it last."""
    pids = tmp_path / "pids"
    async with process(tmp_path, *flags(f"pids={pids}"), wait_for="/health/ready") as proxy:
        async with (
            ClientSession() as http,
            http.post(
                f"{proxy.url}/v1/completions",
                json={"prompt": "x"},
                headers={"x-request-id": "find-me"},
            ) as response,
        ):
            assert (await response.json())["choices"][0]["text"] == "Hello"
        assert len(alive(*pids_in(pids))) == 2
        assert await proxy.end() == 0
        assert alive(*pids_in(pids)) == []
        await until(lambda: "Ready: tiny at" in proxy.log.read_text())
    lines = [json.loads(line) for line in proxy.log.read_text().splitlines() if line[:1] == "{"]
    told = [line for line in lines if line.get("backend") == "llamacpp"]
    ids = [line.get("request_id") for line in told if line["event"] == "request"]
    assert UUID(ids[0]).version == 4  # the warm-up's
    assert ids[1:] == ["find-me"]
    assert [line["event"] for line in told][-2:] == ["stopping", "stopped"]


async def test_not_ready_before_the_model_is_loaded(tmp_path: Path) -> None:
    """While the backend loads, the proxy is alive, not ready, and says 503 with Retry-After."""
    async with process(tmp_path, *flags("delay=3600")) as proxy, ClientSession() as http:
        assert await proxy.status("/health/ready") == 503
        async with http.post(proxy.url + CHAT, json=BODY) as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "model_not_ready"
            assert int(response.headers["retry-after"]) >= 1
        async with http.get(f"{proxy.url}/health") as response:
            assert response.status == 503
            report = await response.json()
        assert report["status"] == "unhealthy"
        assert report["backend"]["status"] == "starting"
        assert await proxy.end() == 0


async def test_a_killed_proxy_takes_its_backend_along(tmp_path: Path) -> None:
    """When the proxy is killed with SIGKILL, backend and grandchild are gone within 2 s."""
    pids = tmp_path / "pids"
    behaviour = flags(f"pids={pids}", "stubborn=1")
    async with process(tmp_path, *behaviour, wait_for="/health/ready") as proxy:
        started = psutil.Process(proxy.pid).children(recursive=True)
        assert len(started) == 3  # guard, backend, its child
        proxy.process.kill()
        await until(lambda: alive(*(child.pid for child in started)) == [], 2)


async def test_a_killed_guard_takes_the_backend_along(tmp_path: Path) -> None:
    """When the guard is killed, the backend dies, and the proxy starts another."""
    pids = tmp_path / "pids"
    settings = flags(f"pids={pids}", **{"backend-backoff-seconds": "0.1"})
    async with process(tmp_path, *settings, wait_for="/health/ready") as proxy:
        (guarding,) = psutil.Process(proxy.pid).children()
        first = pids_in(pids)[0]
        guarding.kill()
        await until(lambda: alive(first) == [], 10)
        await until(lambda: len(pids_in(pids)) == 4)
        await until(lambda: proxy.answers("/health/ready"), 10)
        assert await proxy.end() == 0
        for pid in alive(*pids_in(pids)):  # the first one's child had nobody to end it
            os.kill(pid, signal.SIGKILL)


async def test_a_backend_that_dies_is_restarted(tmp_path: Path) -> None:
    """A running stream ends with an error event, and the next request is served again."""
    pids = tmp_path / "pids"
    settings = flags(f"pids={pids}", **{"backend-backoff-seconds": "0.1"})
    async with process(tmp_path, *settings, wait_for="/health/ready") as proxy:
        async with ClientSession() as http, http.post(proxy.url + CHAT, json=BODY) as response:
            await response.content.readuntil(b"\n\n")
            backend, child = pids_in(pids)
            os.kill(backend, signal.SIGKILL)
            stream = (await asyncio.wait_for(response.content.read(), 5)).decode()
        assert last_event(stream)["error"]["code"] == "upstream_stream_broken"
        await until(lambda: alive(child) == [], 10)
        await until(lambda: len(pids_in(pids)) == 4, 10)
        await until(lambda: proxy.answers("/health/ready"), 10)
        async with ClientSession() as http, http.get(f"{proxy.url}/health") as response:
            report = (await response.json())["backend"]
        assert (report["restarts"], report["last_exit_code"]) == (1, 137)
        assert await proxy.end() == 0
        assert alive(*pids_in(pids)) == []


async def test_a_stubborn_backend_is_ended(tmp_path: Path) -> None:
    """A backend that ignores SIGTERM is killed by the second signal, with its group."""
    pids = tmp_path / "pids"
    behaviour = flags(f"pids={pids}", "stubborn=1", **{"backend-stop-seconds": "60"})
    async with process(tmp_path, *behaviour, wait_for="/health/ready") as proxy:
        proxy.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.5)
        assert await proxy.end(signal.SIGINT) == 130
        await until(lambda: alive(*pids_in(pids)) == [])


@pytest.mark.parametrize("code", [2, 4, 5])
async def test_hopeless_exit_codes_stop_the_proxy(tmp_path: Path, code: int) -> None:
    """What a restart cannot mend ends the proxy with the backend's own code and message."""
    exit_code, _, err = await run("--port", "0", *flags(f"exit={code}"))
    assert exit_code == code
    last = [json.loads(line) for line in err.splitlines() if '"exit_code"' in line][-1]
    assert last["event"] == f"the stand-in ends with {code}"
    assert last["level"] == "error"


async def test_restarts_are_capped() -> None:
    """A backend that ends again and again stops the proxy with code 1 after the last try."""
    settings = {"backend-max-restarts": "2", "backend-backoff-seconds": "0.01"}
    code, _, err = await run("--port", "0", *flags("exit=9", **settings))
    assert code == 1
    starts = [line for line in err.splitlines() if '"backend_starting"' in line]
    assert len(starts) == 3
    assert "3 times in a row" in err


async def test_startup_timeout() -> None:
    """A backend that does not get ready in time stops the proxy, which names the setting."""
    settings = {"backend-startup-timeout": "1"}
    code, _, err = await run("--port", "0", *flags("delay=3600", **settings))
    assert code == 1
    assert "--backend-startup-timeout" in err


async def test_taken_backend_port() -> None:
    """Exit code 3 on a port that was given stops the proxy; on a free one another is tried."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    code, _, err = await run("--port", "0", *flags("exit=3", **{"backend-port": port}))
    assert code == 3, err
    code, _, err = await run("--port", "0", *flags("exit=3", **{"backend-max-restarts": "1"}))
    assert code == 1
    assert err.count('"backend_starting"') == 2


async def test_missing_program() -> None:
    """A backend that cannot be run at all ends the proxy, and says what could not be run."""
    settings = {"backend-python": __file__}  # there, but not to be executed
    code, _, err = await run("--port", "0", *flags(**settings))
    assert code == 2
    assert "--backend-python: there is no program" in err


async def guarded(*command: str) -> asyncio.subprocess.Process:
    """Run a command under the guard."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", guard.__file__, *command,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)],
)
async def test_guard_passes_the_exit_status_on(command: str, code: int) -> None:
    """The guard ends as its command does."""
    child = await guarded("sh", "-c", command)
    assert await asyncio.wait_for(child.wait(), 5) == code


async def test_guard_ends_what_left_the_group() -> None:
    """A descendant in a session of its own is ended, too, when the command is over."""
    child = await guarded("sh", "-c", "setsid sleep 1000 & echo $!; sleep 0.3")
    assert child.stdout is not None
    pid = int(await child.stdout.readline())
    assert alive(pid) == [pid]
    assert await asyncio.wait_for(child.wait(), 5) == 0
    assert alive(pid) == []


async def test_guard_lets_the_command_finish() -> None:
    """After T the command has all the time it needs; the guard itself ignores signals."""
    script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    child = await guarded("sh", "-c", script)
    assert child.stdout is not None
    assert child.stdin is not None
    assert await child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    await asyncio.sleep(0.2)
    assert child.returncode is None
    child.stdin.write(b"T")
    assert await child.stdout.readline() == b"bye\n"
    assert await asyncio.wait_for(child.wait(), 5) == 5


async def test_guard_insists_when_its_owner_is_gone() -> None:
    """At the end of its stdin a command that ignores SIGTERM is killed a second later."""
    child = await guarded("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    assert child.stdout is not None
    assert child.stdin is not None
    await child.stdout.readline()
    closed_at = time.monotonic()
    child.stdin.close()
    assert await asyncio.wait_for(child.wait(), 10) == 137
    assert 0.9 < time.monotonic() - closed_at < 5
