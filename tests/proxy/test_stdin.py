"""A proxy that ends when its starter closes its stdin, as an Erlang port does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.proxy.harness import CHAT, DONE, MESSAGES, StandIn, chunk, refused_port, until
from tests.proxy.processes import Process, alive, environment, pids_in, run
from tests.proxy.programs import Programs
from tests.proxy.test_process import slow

FLAG = "--exit-on-stdin-close"


@asynccontextmanager
async def started(
    tmp_path: Path, *flags: str, stderr: int | None = None, **variables: str
) -> AsyncIterator[Process]:
    """A proxy whose stdin is a pipe; its log is in a file unless `stderr` says where."""
    port = refused_port()
    log = tmp_path / "proxy.log"
    command = [sys.executable, "-m", "openai_proxy", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        child = await asyncio.create_subprocess_exec(
            *command, "--drain-delay-seconds", "0", FLAG, *flags,
            stdin=subprocess.PIPE,
            stdout=stderr if stderr is not None else out,
            stderr=stderr if stderr is not None else out,
            env=environment(**variables),
        )  # fmt: skip
    proxy = Process(port, child, log)
    try:
        await until(lambda: proxy.answers("/health/ready"), 20)
        yield proxy
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_a_closed_stdin_ends_it_with_its_backend(tmp_path: Path, programs: Programs) -> None:
    """It drains as on SIGTERM, stops its backend, and ends with 0."""
    flags = programs.flags("vllm", f"pids={programs.pids}")
    async with started(tmp_path, *flags, **programs.environment) as proxy:
        assert proxy.process.stdin is not None
        proxy.process.stdin.close()
        assert await asyncio.wait_for(proxy.process.wait(), 5) == 0
        assert alive(*pids_in(programs.pids)) == []
        assert "[vllm] stopped" in proxy.log.read_text()


async def test_a_running_stream_may_finish(tmp_path: Path, upstream: StandIn) -> None:
    """A stream that runs when stdin is closed comes whole."""
    upstream.respond = slow
    async with started(tmp_path, "--upstream-url", upstream.url) as proxy, ClientSession() as http:
        body = {"messages": MESSAGES, "stream": True}
        async with http.post(proxy.url + CHAT, json=body) as response:
            first = await response.content.readuntil(b"\n\n")
            assert proxy.process.stdin is not None
            proxy.process.stdin.close()
            rest = await response.content.read()
        assert first + rest == b"".join(chunk(str(number)) for number in range(5)) + DONE
        assert await asyncio.wait_for(proxy.process.wait(), 5) == 0


async def test_its_outputs_may_be_closed_with_it(tmp_path: Path, programs: Programs) -> None:
    """When the starter takes stdout and stderr along, the end is as good."""
    flags = programs.flags("vllm", f"pids={programs.pids}", "stubborn=1", backend_stop_seconds="1")
    ours, theirs = os.pipe()
    async with started(tmp_path, *flags, stderr=theirs, **programs.environment) as proxy:
        os.close(theirs)
        assert proxy.process.stdin is not None
        os.close(ours)
        proxy.process.stdin.close()
        assert await asyncio.wait_for(proxy.process.wait(), 5) == 0
        assert alive(*pids_in(programs.pids)) == []


async def test_a_killed_starter_ends_it(tmp_path: Path, upstream: StandIn) -> None:
    """SIGKILL of the starter is enough: it closes the pipe, too."""
    port = refused_port()
    command = [sys.executable, "-m", "openai_proxy", "--port", str(port), FLAG]
    command += ["--drain-delay-seconds", "0", "--upstream-url", upstream.url]
    starter = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", starter, *command,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    assert child.stdout is not None
    proxy = Process(port, child, tmp_path)
    pid = int(await child.stdout.readline())
    await until(lambda: proxy.answers("/health/ready"), 20)
    child.kill()
    await until(lambda: alive(pid) == [], 5)
    await child.wait()


async def test_what_comes_in_is_thrown_away(tmp_path: Path, upstream: StandIn) -> None:
    """Data on stdin ends nothing; without the flag its end does not, either."""
    async with started(tmp_path, "--upstream-url", upstream.url) as proxy:
        assert proxy.process.stdin is not None
        proxy.process.stdin.write(b"x" * 300_000)
        await asyncio.wait_for(proxy.process.stdin.drain(), 5)
        await asyncio.sleep(0.2)
        assert await proxy.status("/health/ready") == 200
        assert await proxy.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("kind", ["devnull", "file"])
async def test_a_stdin_that_does_not_stay_open(tmp_path: Path, kind: str) -> None:
    """Where nobody holds a pipe the flag is a mistake, which stops the start with code 2."""
    if kind == "devnull":
        code, _, err = await run("--port", "0", FLAG, "--without-upstream")
    else:
        command = [sys.executable, "-m", "openai_proxy", "--port", "0", FLAG, "--without-upstream"]
        with (tmp_path / "file").open("w+b") as file:
            child = await asyncio.create_subprocess_exec(
                *command, stdin=file, stderr=subprocess.PIPE, env=environment()
            )
            _, raw = await asyncio.wait_for(child.communicate(), 20)
        assert child.returncode is not None
        code, err = child.returncode, raw.decode()
    assert code == 2
    assert "--exit-on-stdin-close" in err
