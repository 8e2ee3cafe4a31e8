"""Backends that misbehave: the proxy stays in charge, serves on, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import psutil
import pytest
from aiohttp import ClientSession

from tests.proxy.harness import CHAT, MESSAGES, until
from tests.proxy.processes import alive, pids_in, process, run
from tests.proxy.programs import Programs
from tests.proxy.test_backend_kinds import events, last_words, report_of

MEGABYTE = 1024 * 1024


async def test_a_killed_proxy_leaves_nothing(tmp_path: Path, programs: Programs) -> None:
    """SIGKILL of the proxy ends a program that ignores SIGTERM, and what that has started."""
    flags = programs.flags("vllm", f"pids={programs.pids}", "stubborn=1")
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        started = [child.pid for child in psutil.Process(proxy.pid).children(recursive=True)]
        assert len(started) == 3  # guard, backend, its child
        proxy.process.kill()
        await until(lambda: alive(*started) == [], 10)


async def test_a_backend_that_ignores_sigterm(tmp_path: Path, programs: Programs) -> None:
    """It has --backend-stop-seconds, no more and no less; then it is killed with its group."""
    flags = programs.flags(
        "vllm", f"pids={programs.pids}", "stubborn=1", backend_stop_seconds="0.7"
    )
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        asked_at = time.monotonic()
        assert await proxy.end() == 0
        assert 0.7 < time.monotonic() - asked_at < 5
        assert alive(*pids_in(programs.pids)) == []


async def test_a_backend_that_closes_its_port(tmp_path: Path, programs: Programs) -> None:
    """One that lives on without its port is ended, and another one is started."""
    closed = tmp_path / "close"
    flags = programs.flags(
        "vllm", f"pids={programs.pids}", f"close={closed}", backend_backoff_seconds="0.1"
    )
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        first = pids_in(programs.pids)
        closed.touch()
        await until(lambda: alive(*first) == [], 15)
        closed.unlink()
        await until(lambda: len(pids_in(programs.pids)) == 4, 5)
        await until(lambda: proxy.answers("/health/ready"), 10)
        assert (await report_of(proxy))["restarts"] == 1
        await proxy.logged("backend_port_closed")
        assert await proxy.end() == 0


async def test_a_backend_that_goes_to_the_background(programs: Programs) -> None:
    """Who leaves its parent is ended with it; when the proxy gives up it says what is wrong."""
    flags = programs.flags(
        "vllm",
        *(f"pids={programs.pids}", "fork=1"),
        backend_max_restarts="1",
        backend_backoff_seconds="0.1",
    )
    code, _, err = await run("--port", "0", *flags, **programs.environment)
    assert code == 1
    assert "must stay in the foreground" in last_words(err)
    assert len(pids_in(programs.pids)) == 4
    assert alive(*pids_in(programs.pids)) == []


@pytest.mark.parametrize("flood", ["long", "lines"])
async def test_a_backend_that_floods_its_log(
    tmp_path: Path, programs: Programs, flood: str
) -> None:
    """Little of it is passed on; requests are served, and memory does not grow."""
    flags = programs.flags("llama-server", f"flood={flood}")
    async with (
        process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy,
        ClientSession() as http,
    ):
        await asyncio.sleep(3)
        body = {"model": "Tiny_Model", "messages": MESSAGES}
        asked_at = time.monotonic()
        for _ in range(5):
            async with http.post(proxy.url + CHAT, json=body) as response:
                assert response.status == 200
        # It writes a line for each request, which waits for room in the pipe beside the flood.
        assert time.monotonic() - asked_at < 5
        assert psutil.Process(proxy.pid).memory_info().rss < 120 * MEGABYTE
        assert await proxy.end() == 0
        text = proxy.log.read_text()
    assert len(text) < 4 * MEGABYTE
    if flood == "lines":
        assert any(line["event"] == "lines_dropped" for line in events(text))
    assert all(len(line) < 20_000 for line in text.splitlines())


async def test_a_backend_that_never_listens(programs: Programs) -> None:
    """It stops the proxy at the end of its time, and is gone itself."""
    flags = programs.flags("vllm", f"pids={programs.pids}", "deaf=1", backend_startup_timeout="2")
    code, _, err = await run("--port", "0", *flags, **programs.environment)
    assert code == 1
    assert "--backend-startup-timeout" in err
    assert alive(*pids_in(programs.pids)) == []


async def test_what_it_said_last_is_told(programs: Programs) -> None:
    """When the proxy gives up on a program it tells the last line of it."""
    flags = programs.flags(
        "command",
        *("say=RuntimeError: the moon is full", "exit=9"),
        backend_max_restarts="2",
        backend_backoff_seconds="0.01",
    )
    code, _, err = await run("--port", "0", *flags, **programs.environment)
    assert code == 1
    assert err.count('"backend_starting"') == 3
    assert last_words(err) == (
        "the command backend ended 3 times in a row; the last it said: "
        "RuntimeError: the moon is full"
    )


async def test_second_ctrl_c_kills_at_once(tmp_path: Path, programs: Programs) -> None:
    """A person who insists does not wait for a program that ignores SIGTERM."""
    flags = programs.flags(
        "shimmy", f"pids={programs.pids}", "stubborn=1", backend_stop_seconds="60"
    )
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        proxy.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.3)
        assert await proxy.end(signal.SIGINT) == 130
        await until(lambda: alive(*pids_in(programs.pids)) == [])
