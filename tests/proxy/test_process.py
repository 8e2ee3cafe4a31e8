"""The real process: how it starts, what it costs, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from tests.proxy.harness import CHAT, DONE, MESSAGES, StandIn, chunk, start_stream, until
from tests.proxy.processes import environment, measured_start, process, run
from tests.proxy.test_errors import last_event

BODY = {"messages": MESSAGES, "stream": True}
MEGABYTE = 1024 * 1024


async def test_start_and_memory(tmp_path: Path, upstream: StandIn) -> None:
    """It answers within a second, and idles below 80 MB; best of three, the machine may be busy.

    On a slow machine, within six times what Python takes to import what any server would.
    """
    runs, imports = [], []
    for _ in range(3):
        runs.append(await measured_start(tmp_path, "--upstream-url", upstream.url))
        imports.append(await asyncio.to_thread(_import_seconds))
    seconds = min(min(run[0], run[1]) for run in runs)
    rss = min(run[2] for run in runs)
    print("seconds, CPU seconds, bytes:", runs, "seconds of imports:", imports)
    assert seconds < max(1, 6 * min(imports))
    assert rss < 80 * MEGABYTE


def _import_seconds() -> float:
    """Return the CPU seconds of a Python that imports asyncio, TLS and pydantic."""
    code = (
        "import asyncio, ssl, pydantic.main, resource;"
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"
    )
    return float(subprocess.check_output([sys.executable, "-c", code]))


async def test_unused_parts_are_not_imported(tmp_path: Path, upstream: StandIn) -> None:
    """Before it listens, neither client nor framework are imported; backends only if configured."""
    code = "import sys, openai_proxy.__main__; print(*sys.modules)"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=environment()
    )
    out, _ = await child.communicate()
    modules = set(out.decode().split())
    assert "openai_proxy.lifecycle" in modules
    assert not {"aiohttp", "fastapi", "openai_proxy.backends.base"} & modules


async def slow(request: web.Request) -> web.StreamResponse:
    """Stream five chunks in half a second."""
    response = await start_stream(request)
    for number in range(5):
        await response.write(chunk(str(number)))
        await asyncio.sleep(0.1)
    await response.write(DONE)
    return response


async def endless(request: web.Request) -> web.StreamResponse:
    """Stream on and on."""
    response = await start_stream(request)
    while True:
        await response.write(chunk("x"))
        await asyncio.sleep(0.02)


async def test_sigterm_lets_a_stream_finish(tmp_path: Path, upstream: StandIn) -> None:
    """SIGTERM under a running stream: the stream comes whole, then the process ends with 0."""
    upstream.respond = slow
    async with process(tmp_path, "--upstream-url", upstream.url) as proxy, ClientSession() as http:
        async with http.post(proxy.url + CHAT, json=BODY) as response:
            first = await response.content.readuntil(b"\n\n")
            proxy.process.send_signal(signal.SIGTERM)
            rest = await response.content.read()
        assert first + rest == b"".join(chunk(str(number)) for number in range(5)) + DONE
        assert await asyncio.wait_for(proxy.process.wait(), 5) == 0


async def test_the_grace_period_ends_streams_with_an_event(
    tmp_path: Path, upstream: StandIn
) -> None:
    """A stream that outlasts the grace period ends with `server_shutting_down`."""
    upstream.respond = endless
    flags = ("--upstream-url", upstream.url, "--grace-seconds", "0.5")
    async with process(tmp_path, *flags) as proxy, ClientSession() as http:
        async with http.post(proxy.url + CHAT, json=BODY) as response:
            await response.content.readuntil(b"\n\n")
            asked_at = time.monotonic()
            proxy.process.send_signal(signal.SIGTERM)
            stream = (await response.content.read()).decode()
        assert last_event(stream)["error"]["code"] == "server_shutting_down"
        assert await asyncio.wait_for(proxy.process.wait(), 5) == 0
        assert 0.5 <= time.monotonic() - asked_at < 5
    await asyncio.wait_for(upstream.closed.wait(), 5)


async def test_drain(tmp_path: Path, upstream: StandIn) -> None:
    """In the drain delay it is not ready, but alive and accepting; then it is gone."""
    flags = ("--upstream-url", upstream.url, "--drain-delay-seconds", "1.5")
    async with process(tmp_path, *flags, wait_for="/health/ready") as proxy:
        proxy.process.send_signal(signal.SIGTERM)
        await until(lambda: proxy.answers("/health/ready", 503), 1)
        assert await proxy.status("/health/live") == 200
        assert await proxy.status("/health") == 503
        async with (
            ClientSession() as http,
            http.post(proxy.url + CHAT, json={"messages": MESSAGES}) as response,
        ):
            assert response.status == 200
            # So that a client which keeps its connection notices before the end.
            assert response.headers["connection"] == "close"
        assert await asyncio.wait_for(proxy.process.wait(), 5) == 0
        assert await proxy.status("/health/live") is None


async def test_idle_connections_do_not_hold_up_the_end(tmp_path: Path, upstream: StandIn) -> None:
    """Clients that keep their connection, or sent half a head, are not waited for."""
    flags = ("--upstream-url", upstream.url, "--grace-seconds", "60")
    async with process(tmp_path, *flags) as proxy:
        idle = socket.create_connection(("127.0.0.1", proxy.port))
        idle.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" in idle.recv(100)
        half = socket.create_connection(("127.0.0.1", proxy.port))
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost:")
        with idle, half:
            assert await proxy.end(seconds=20) == 0


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
async def test_second_ctrl_c_ends_at_once(
    tmp_path: Path, upstream: StandIn, first: signal.Signals
) -> None:
    """SIGTERM again changes nothing, for it is often sent twice; SIGINT waits for nothing."""
    upstream.respond = endless
    async with (
        process(tmp_path, "--upstream-url", upstream.url) as proxy,
        ClientSession() as http,
        http.post(proxy.url + CHAT, json=BODY) as response,
    ):
        await response.content.readuntil(b"\n\n")
        for number in (first, signal.SIGTERM):
            proxy.process.send_signal(number)
            await asyncio.sleep(0.3)
            assert proxy.process.returncode is None
        assert await proxy.end(signal.SIGINT, 10) == 128 + signal.SIGINT


async def test_port_taken() -> None:
    """A taken port stops the start with code 3 and names port and setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, err = await run(
            "--host", "127.0.0.1", "--port", port, "--upstream-url", "http://127.0.0.1:1"
        )
    assert code == 3
    assert port in err
    assert "--port" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        ([], {}, ["--upstream-url", "--backend"]),
        (["--backend", "llamacpp"], {}, ["--model-path"]),
        (["--port", "99999"], {}, ["--port", "65535", "99999", "OPENAI_PROXY_PORT"]),
        (["--prot", "1"], {}, ["--prot", "--help"]),
        ([], {"OPENAI_PROXY_GRACE_SECONDS": "soon"}, ["OPENAI_PROXY_GRACE_SECONDS", "soon"]),
        (["--upstream-url", "http://me:pw@h"], {}, ["--upstream-url", "password"]),
        (["--upstream-url", "ftp://h"], {}, ["--upstream-url", "http://HOST:PORT"]),
    ],
)
async def test_bad_configuration(
    arguments: list[str], variables: dict[str, str], says: list[str]
) -> None:
    """Bad configuration stops the start with code 2 and one line that names the setting."""
    code, out, err = await run(*arguments, **variables)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert all(text in err for text in says), err
    assert "pw" not in err.replace("password", "")


async def test_banner(tmp_path: Path, upstream: StandIn) -> None:
    """When it is ready, it prints where it is and lines to paste; the curl line works."""
    async with process(tmp_path, "--upstream-url", upstream.url) as proxy:
        text = await proxy.logged("from openai import OpenAI")
        assert f"Ready: tiny at http://127.0.0.1:{proxy.port}/v1" in text
        curl = next(line.strip() for line in text.splitlines() if line.startswith("  curl"))
        child = await asyncio.create_subprocess_shell(
            f"{curl} -s", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await child.communicate()
        assert json.loads(out)["choices"][0]["message"]["content"] == "Hello there"


async def test_logs_are_json_without_secrets(tmp_path: Path, upstream: StandIn) -> None:
    """Log lines are JSON; they have the request's id and facts, and neither prompt nor key."""
    async with process(tmp_path, "--upstream-url", upstream.url, "--quiet") as proxy:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "my-prompt"}]}
        headers = {"authorization": "Bearer my-key", "x-request-id": "find-me"}
        async with (
            ClientSession() as http,
            http.post(proxy.url + CHAT, json=body, headers=headers) as response,
        ):
            assert response.status == 200
        assert await proxy.end() == 0
        text = proxy.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    (access,) = [line for line in lines if line["event"] == "request"]
    assert access["request_id"] == "find-me"
    assert (access["path"], access["status"], access["model"]) == (CHAT, 200, "tiny")
    assert access["duration_seconds"] > 0
    assert "my-prompt" not in text
    assert "my-key" not in text


async def test_version_and_help() -> None:
    """--version and --help answer and end with 0."""
    assert (await run("--version"))[:2] == (0, "0.1.0\n")
    code, out, _ = await run("--help")
    assert code == 0
    assert "OPENAI_PROXY_MAX_BODY_BYTES" in out
    assert os.path.sep not in out.split("usage")[0]
