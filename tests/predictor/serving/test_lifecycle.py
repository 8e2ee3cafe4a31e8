"""Starts that fail, engines that die, servers that are told to end: with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from tests.processes import Predictor, Server, descendants

pytestmark = pytest.mark.model

STORY: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Write a long story about a fox."}],
    "extra_body": {"ignore_eos": True},
    "seed": 7,
}


@contextlib.asynccontextmanager
async def connect(server: Predictor) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=90
    ) as client:
        yield client


@pytest.fixture(scope="module")
def survivor(model_path: Path) -> Iterator[Predictor]:
    """A predictor whose engine may be killed: it starts another one."""
    with Predictor(model_path, "--max_sequences=2", "--max_engine_restarts=9") as server:
        yield server.ready()


async def test_killed_engine_under_one_stream(survivor: Predictor) -> None:
    """SIGKILL of the engine: the stream pauses and goes on to its end; the server stays.

    What was sent before is the text without a death; no token comes twice or is missing.
    """
    async with connect(survivor) as client:
        whole = await client.chat.completions.create(**STORY, max_tokens=40)
        stream = await client.chat.completions.create(
            **STORY, max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
        text = ""
        killed = None
        async with asyncio.timeout(90):
            async for chunk in stream:
                if chunk.choices:
                    text += chunk.choices[0].delta.content or ""
                if killed is None and len(text) > 30:
                    sent = text
                    killed = survivor.engine()
                    killed.kill()
        assert killed is not None
        assert (whole.choices[0].message.content or "").startswith(sent)
        assert len(text) > len(sent)
        assert chunk.usage is not None
        assert whole.usage is not None  # which does not have its prompt from the cache
        assert chunk.usage.prompt_tokens == whole.usage.prompt_tokens
        assert chunk.usage.completion_tokens == whole.usage.completion_tokens
        assert survivor.wait_for("engine_died")["exit_status"] == -9
        assert survivor.engine().pid != killed.pid


async def test_killed_engine_under_several_requests(survivor: Predictor) -> None:
    """One death fails none of the requests that ran or waited, and the model stays ready."""
    url = f"{survivor.url}/v2/health/ready"
    async with connect(survivor) as client, httpx2.AsyncClient() as http:
        requests = [
            asyncio.create_task(client.chat.completions.create(**STORY, max_tokens=20))
            for _ in range(5)
        ]
        await asyncio.sleep(0.5)
        survivor.engine().kill()
        probes = [await http.get(url) for _ in range(100) if not await asyncio.sleep(0.02)]
        answers = await asyncio.gather(*requests)
        assert {probe.status_code for probe in probes} == {200}
        assert all(answer.usage and answer.usage.completion_tokens == 20 for answer in answers)


@pytest.mark.timeout(240)  # a busy machine's slow steps let the watchdog wait: 20 times as long
async def test_hanging_engine(model_path: Path) -> None:
    """An engine that stands still is killed and replaced; stream and queue go on to their ends.

    The model stays ready, for its requests are answered later.
    """
    flags = ("--watchdog_seconds=2", "--n_batch=16", "--max_sequences=1")
    with Predictor(model_path, *flags) as server:
        server.ready()
        async with connect(server) as client, httpx2.AsyncClient(base_url=server.url) as http:
            stream = await client.chat.completions.create(**STORY, max_tokens=40, stream=True)
            waiting = asyncio.create_task(client.chat.completions.create(**STORY, max_tokens=5))
            chunks = aiter(stream)
            sent = [await anext(chunks) for _ in range(5)]
            hung = server.engine()
            hung.suspend()
            async with asyncio.timeout(200):
                assert (await http.get("/v2/health/ready")).status_code == 200
                sent += [chunk async for chunk in chunks]
                answer = await waiting
            metrics = (await http.get("/metrics")).text
        assert sent[-1].choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        assert server.wait_for("engine_hung")["silent_seconds"] >= 2
        assert server.wait_for("engine_died")["exit_status"] == -9
        assert 'kserve_llamacpp:engine_hangs_total{model_name="smollm2"} 1.0' in metrics
        assert not hung.is_running()


async def test_queue_timeout(model_path: Path) -> None:
    """A request that the running one keeps from starting gets 503 in time, the other its text."""
    with Predictor(model_path, "--max_sequences=1", "--queue_timeout_seconds=1") as server:
        server.ready()
        async with connect(server) as client:
            stream = await client.chat.completions.create(**STORY, max_tokens=4000, stream=True)
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(**STORY, max_tokens=1)
            assert (caught.value.status_code, caught.value.code) == (503, "queue_timeout")
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert (await anext(aiter(stream))).choices


async def test_choices_that_wait_for_each_other(model_path: Path) -> None:
    """A choice that gets its slot after the queue's deadline is streamed: its request has begun."""
    with Predictor(model_path, "--max_sequences=1", "--queue_timeout_seconds=1") as server:
        server.ready()
        async with connect(server) as client:
            stream = await client.chat.completions.create(**STORY, n=2, max_tokens=150, stream=True)
            began = time.monotonic()
            first_texts: dict[int, float] = {}
            ends = []
            async for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content:
                        first_texts.setdefault(choice.index, time.monotonic() - began)
                    if choice.finish_reason:
                        ends.append((choice.index, choice.finish_reason))
        assert ends == [(0, "length"), (1, "length")]
        assert first_texts[1] > 1


async def test_full_queue(model_path: Path) -> None:
    """A tenant fills the queue: its own next one gets 429, another tenant's takes its last place.

    Every request that was taken and not displaced is answered.
    """
    with Predictor(model_path, "--max_sequences=1", "--max_waiting=2") as server:
        server.ready()
        async with connect(server) as client:

            async def ask(tenant: str) -> str:
                try:
                    await client.chat.completions.create(
                        **STORY, max_tokens=60, extra_headers={"x-tenant": tenant}
                    )
                except openai.RateLimitError as error:
                    return f"{error.code}, again in {error.response.headers['retry-after']} s"
                return "answered"

            asked = []
            for tenant in "aaaab":
                asked.append(asyncio.create_task(ask(tenant)))
                await asyncio.sleep(0.1)
            results = await asyncio.gather(*asked)
        full = "queue_full, again in 1 s"  # nothing has ended yet
        assert results == ["answered", "answered", full, full, "answered"]


async def test_engine_that_keeps_dying(model_path: Path) -> None:
    """Past the cap of restarts the model is not ready; another engine comes, and it is again.

    A pause is not even needed for the first. The server is alive throughout.
    """
    with Predictor(model_path, "--max_engine_restarts=0") as server:
        server.ready()
        server.engine().kill()
        server.wait_for("engine_state_changed", state="failed")
        async with httpx2.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/v1/models/smollm2")).status_code == 503
            assert (await http.get("/v2/health/ready")).status_code == 503
            assert (await http.get("/v2/health/live")).status_code == 200
            answer = await http.post("/v1/completions", json={"prompt": "a"})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "model_not_ready"
            assert int(answer.headers["retry-after"]) >= 1
            server.wait_for("model_ready", nth=2)
            assert (await http.get("/v2/health/ready")).status_code == 200
            answer = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
            assert answer.status_code == 200


async def test_no_descriptors_and_no_file_at_a_restart(model_path: Path, tmp_path: Path) -> None:
    """An engine dies while descriptors are used up, another while the model's file is away.

    A request waits for both restarts and is answered; nobody touches the server.
    """
    link = tmp_path / "model.gguf"
    link.symlink_to(model_path)
    with Predictor(link, "--max_engine_restarts=9") as server:
        server.ready()
        process = psutil.Process(server.pid)
        async with connect(server) as client:
            before = process.rlimit(psutil.RLIMIT_NOFILE)
            stream = await client.chat.completions.create(**STORY, max_tokens=60, stream=True)
            chunks = aiter(stream)
            await anext(chunks)
            process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() - 2, before[1]))
            server.engine().kill()
            assert "Too many open files" in server.wait_for("engine_not_started")["error"]
            link.unlink()
            process.rlimit(psutil.RLIMIT_NOFILE, before)
            server.wait_for("engine_not_started", error=_NO_FILE.format(link))
            link.symlink_to(model_path)
            rest = [chunk async for chunk in chunks]
            assert rest[-1].choices[0].finish_reason == "length"


def test_a_server_that_cannot_start_engines_any_more(model_path: Path) -> None:
    """Where no process can be started for too long, the server ends with status 6 by itself."""
    patience = (
        "from kserve_llamacpp.engine_client import supervisor as s; s.NOT_STARTED_SECONDS = 1.0"
    )
    with Predictor(model_path, "--grace_seconds=1", first=patience) as server:
        server.ready()
        process = psutil.Process(server.pid)
        hard = process.rlimit(psutil.RLIMIT_NOFILE)[1]
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() - 2, hard))
        server.engine().kill()
        assert server.exit_status(20) == 6
        assert "Too many open files" in server.wait_for("server_lost")["error"]


async def test_sigterm_lets_a_stream_finish(model_path: Path) -> None:
    """SIGTERM: a running stream ends as it should, then the server leaves with status 0."""
    with Predictor(model_path, "--grace_seconds=60") as server:
        server.ready()
        engine = server.engine()
        async with connect(server) as client:
            stream = await client.chat.completions.create(**STORY, max_tokens=40, stream=True)
            chunks = aiter(stream)
            await anext(chunks)
            server.signal(signal.SIGTERM)
            rest = [chunk async for chunk in chunks]
        assert rest[-1].choices[0].finish_reason == "length"
        assert await asyncio.to_thread(server.exit_status) == 0
        assert psutil.wait_procs([engine], timeout=5)[1] == []


async def test_drain_delay_and_grace(model_path: Path) -> None:
    """After SIGTERM: not ready but accepting, then refusing; the grace period ends what runs."""
    with Predictor(model_path, "--drain_delay_seconds=2", "--grace_seconds=1") as server:
        server.ready()
        async with connect(server) as client, httpx2.AsyncClient(base_url=server.url) as http:
            stream = await client.chat.completions.create(**STORY, max_tokens=4000, stream=True)
            server.signal(signal.SIGTERM)
            server.wait_for("draining")
            assert (await http.get("/v1/models/smollm2")).status_code == 503
            assert (await http.get("/v2/health/ready")).status_code == 503
            accepted = await http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
            assert accepted.status_code == 200
            server.wait_for("closing")
            with pytest.raises(openai.APIError) as error:
                _ = [chunk async for chunk in stream]
            assert error.value.code == "server_shutting_down"
            with pytest.raises(httpx2.ConnectError):
                async with httpx2.AsyncClient(base_url=server.url) as late:
                    await late.get("/v1/models")
        assert await asyncio.to_thread(server.exit_status) == 0


async def test_second_signal_ends_at_once(model_path: Path) -> None:
    """SIGTERM again changes nothing; a second SIGINT does not wait, and leaves no engine behind."""
    with Predictor(model_path, "--drain_delay_seconds=60") as server:
        server.ready()
        engine = server.engine()
        server.signal(signal.SIGINT)
        server.wait_for("draining")
        server.signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            await asyncio.to_thread(server.exit_status, 0.5)
        server.signal(signal.SIGINT)
        assert await asyncio.to_thread(server.exit_status, 5) == 130
        engine.wait(5)


_NO_FILE = (
    "llama.cpp cannot load {}: the file is damaged, incomplete or of an architecture that this "
    "build does not know (the lines above say which)"
)


def is_started(server: Predictor) -> bool:
    """Whether the engine's program runs: stopped before that, it would stop its parent, too."""
    return any(
        "kserve_llamacpp.engine.worker" in child.cmdline() for child in descendants(server.pid)
    )


async def test_sigterm_while_the_model_loads(model_path: Path) -> None:
    """A server whose model does not finish loading ends, too, when it is told to."""
    with Predictor(model_path, "--grace_seconds=1") as server:
        server.wait_for("http_listening")
        async with asyncio.timeout(10):
            while not is_started(server):  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.001)
        engine = server.engine()
        engine.suspend()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.exit_status, 10) == 0
        assert psutil.wait_procs([engine], timeout=5)[1] == []


def test_engine_leaves_with_its_server(model_path: Path) -> None:
    """A server that is killed with SIGKILL leaves no engine behind."""
    with Predictor(model_path) as server:
        server.ready()
        engine = server.engine()
        server.signal(signal.SIGKILL)
        assert psutil.wait_procs([engine], timeout=5)[1] == []


def test_port_taken(model_path: Path) -> None:
    """A taken port ends the start with status 3 and a line that names the flag."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Predictor(model_path, f"--http_port={port}") as server:
            assert server.exit_status() == 3
            assert f"--http_port: another process listens on port {port}" in server.text[-1]


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, 4, "there is no file or folder"),
        (b"PK\x03\x04 something else", 4, "is not a GGUF file"),
        (b"GGUF" + bytes(100), 4, "cannot load"),
    ],
)
def test_model_file(tmp_path: Path, content: bytes | None, status: int, words: str) -> None:
    """A missing, foreign or damaged model file ends the start with status 4 and says what to do."""
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    with Predictor(file) as server:
        assert server.exit_status() == status
        assert words in "".join(server.text)
        assert "--model_dir" in server.text[-1] or "cannot load" in "".join(server.text)


def test_model_that_does_not_fit(model_path: Path) -> None:
    """A KV cache larger than the memory ends the start with status 5 and says what would fit."""
    with Predictor(model_path, "--n_ctx=8000000") as server:
        assert server.exit_status() == 5
        assert "lower --n_ctx to" in "".join(server.text)


async def test_a_context_that_is_not_whole_blocks(model_path: Path) -> None:
    """A prompt that the rounded context holds, but not the one asked for, is answered."""
    with Predictor(model_path, "--n_ctx=300") as server:
        server.ready()
        async with connect(server) as client:
            answer = await client.completions.create(
                model="smollm2", prompt=[1 + at for at in range(400)], max_tokens=1
            )
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == 400


def test_libraries_that_are_not_there(tmp_path: Path, model_path: Path) -> None:
    """A folder without llama.cpp's libraries ends the start with status 2 and names the setting."""
    with Predictor(model_path, env={"LLAMA_CPP_LIB_PATH": str(tmp_path)}) as server:
        assert server.exit_status() == 2
        assert "LLAMA_CPP_LIB_PATH" in "".join(server.text)


def test_bad_flags(model_path: Path) -> None:
    """A wrong setting ends the start with status 2 and names the flag; so does an unknown one."""
    with Predictor(model_path, "--max_sequences=0") as server:
        assert server.exit_status() == 2
        assert "--max_sequences is 0" in server.text[-1]
    with Server([sys.executable, "-m", "kserve_llamacpp", "--no_such_flag=1"]) as server:
        assert server.exit_status() == 2
        assert "--no_such_flag" in server.text[-1]
