"""Backends that hang: seen, ended and started again; those that are only busy are left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import ClientSession

from openai_proxy.assembly import Assembly
from openai_proxy.backends import looks, ports
from openai_proxy.backends.base import Checks, Life, Supervisor, SupervisorOptions
from openai_proxy.backends.command import Command
from openai_proxy.backends.kind import Backend, BackendError
from openai_proxy.backends.llamacpp import LlamaCpp
from openai_proxy.backends.ports import Received
from openai_proxy.backends.vllm import VLLM
from openai_proxy.config import load
from tests.proxy.harness import CHAT, MESSAGES, until
from tests.proxy.processes import alive, pids_in, process
from tests.proxy.programs import Programs
from tests.proxy.test_backend import flags
from tests.proxy.test_backend_kinds import report_of
from tests.proxy.test_backend_output import collected
from tests.proxy.test_backend_parts import Sleeper, answering, warm, yes


@dataclass
class Patient:
    """A supervised sleeper that seems ready; its looks and its clock are the test's."""

    limit: float
    lives: Iterator[Life]
    grows: Iterator[int]
    now: float = 0.0
    last: int = 0
    told: list[str | None] = field(default_factory=list)
    has_seen_all: asyncio.Event = field(default_factory=asyncio.Event)

    def supervisor(self) -> Supervisor:
        """Return its supervisor, which starts it once."""
        settings = SupervisorOptions(
            max_restarts=0,
            environment=dict(os.environ),
            liveness_timeout_seconds=self.limit,
            stop_seconds=1,
        )
        checks = Checks(yes, warm, yes, self.life, self.received)
        output, _ = collected()
        return Supervisor(
            Sleeper(),
            settings,
            checks,
            output,
            self.told.append,
            sleep=self.sleep,
            clock=lambda: self.now,
        )

    async def sleep(self, seconds: float) -> None:
        """Let time pass, for looks at its life alone: those at its port have another rhythm."""
        if seconds == self.limit / 4:
            self.now += seconds
        await asyncio.sleep(0)

    async def life(self, _: str, __: float) -> Life:
        """Answer a look, or not; after the last one there are no more."""
        found = next(self.lives, None)
        if found is None:
            self.has_seen_all.set()
            await asyncio.Event().wait()
            raise AssertionError
        return found

    def received(self, _: str) -> Received:
        """Return what has come over its one connection; nothing more once all has been told."""
        self.last = next(self.grows, self.last)
        return {1: self.last}

    async def hangs(self) -> bool:
        """Run it; tell whether it was ended by all its looks, after which it is given up."""
        supervised = self.supervisor()
        running = asyncio.create_task(supervised.run())
        seen = asyncio.create_task(self.has_seen_all.wait())
        timeout = 10 if self.limit else 0.5
        await asyncio.wait({running, seen}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        seen.cancel()
        if running.done():
            with pytest.raises(BackendError):
                await running
            return self.told[-1] is None
        running.cancel()
        await supervised.stop(1)
        with suppress(asyncio.CancelledError):
            await running
        return False


@pytest.mark.parametrize(
    ("lives", "grows", "is_ended"),
    [
        ("sssss", [7, 7, 7, 7, 7], True),
        ("sss", [7, 7, 7], False),  # too short a time
        ("ssasss", [7, 7, 7, 7, 7], False),
        ("ssssssss", [7, 7, 8, 8, 8, 9, 9, 9], False),  # busy, and it streams
        ("ssssssss", [7, 7, 8, 8, 8, 8, 8, 8], True),  # it streamed at first
        ("aooo", [], True),  # long before the limit, and whatever it sends
        ("ooaooaoo", [], False),
    ],
)
async def test_when_it_hangs(lives: str, grows: list[int], is_ended: bool) -> None:
    """Neither a sign of life nor a byte for the whole time: one of both begins it anew.

    One that says three times in a row that it cannot go on is not waited for.
    """
    looks = {"a": Life.ALIVE, "s": Life.SILENT, "o": Life.OVER}
    seen = [looks[letter] for letter in lives]
    assert await Patient(4.0, iter(seen), iter(grows)).hangs() == is_ended


async def test_refusal_of_a_look_is_no_sign_of_life() -> None:
    """The bytes of a 503 that a look itself has got do not count, though just closed."""

    @dataclass
    class Refusing(Patient):
        num_looks: int = 0
        is_open: bool = False

        async def life(self, url: str, seconds: float) -> Life:
            self.num_looks += 1
            self.is_open = True
            return await super().life(url, seconds)

        async def sleep(self, seconds: float) -> None:
            self.is_open = self.is_open and seconds != self.limit / 4
            await super().sleep(seconds)

        def received(self, url: str) -> Received:
            own = {100 + self.num_looks: 40} if self.is_open else {}
            return {**super().received(url), **own}

    assert await Refusing(4.0, iter([Life.SILENT] * 5), iter([7])).hangs()


async def test_it_may_be_turned_off() -> None:
    """With 0 a backend is never taken for hanging, and nobody looks."""
    patient = Patient(0, iter([Life.SILENT] * 50), iter([7] * 50))
    assert not await patient.hangs()
    assert next(patient.lives) is Life.SILENT
    assert load({"without_upstream": True, "backend_liveness_timeout": 0})


@pytest.mark.parametrize(
    ("backend", "health_path", "status", "found"),
    [
        (LlamaCpp("python", "m", "m.gguf", 30), "/v1/models/m", 200, Life.ALIVE),
        (LlamaCpp("python", "m", "m.gguf", 30), "/v1/models/m", 503, Life.OVER),
        (LlamaCpp("python", "m", "m.gguf", 30), "/v1/models/m", 404, Life.ALIVE),
        (VLLM("vllm", "m", "m"), "/health", 200, Life.ALIVE),
        (VLLM("vllm", "m", "m"), "/health", 503, Life.SILENT),
        (Command(("run",)), None, 503, Life.ALIVE),  # its port is all that is known
        (Command(("run",)), "/health", 503, Life.SILENT),
    ],
)
async def test_what_a_look_shows(
    backend: Backend, health_path: str | None, status: int, found: Life
) -> None:
    """The predictor is asked at its liveness path; for others an error is no sign of life."""

    async def never() -> Assembly:
        raise AssertionError

    async with answering(b"HTTP/1.1 %d X\r\n\r\n" % status) as url:
        assert await looks.checks(backend, health_path, 1.0, never).life(url, 5.0) is found
    assert await looks.checks(backend, health_path, 1.0, never).life(url, 5.0) is Life.SILENT


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_has_come_over_a_connection(host: str) -> None:
    """The kernel's count grows with what comes, on connections to that port only."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)) as client:
            accepted, _ = server.accept()
            with accepted:
                before = ports.received(port)
                assert before == {os.fstat(client.fileno()).st_ino: 0}
                accepted.sendall(b"x" * 10)
                assert client.recv(10)
                now = ports.received(port)
                assert list(now.values()) == [10]
                assert ports.has_grown(before, now)
                assert not ports.has_grown(now, now)
                assert not ports.received(port + 1)
    assert ports.received(port) == {}


async def test_a_stopped_backend_is_started_again(tmp_path: Path, programs: Programs) -> None:
    """One whose port takes connections, and that never answers, is killed and started again."""
    flags = programs.flags(
        "vllm",
        f"pids={programs.pids}",
        backend_liveness_timeout="1",
        backend_backoff_seconds="0.1",
        backend_stop_seconds="0.1",
    )
    async with process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy:
        first = pids_in(programs.pids)
        os.kill(first[0], signal.SIGSTOP)
        await until(lambda: alive(*first) == [], 20)
        await until(lambda: proxy.answers("/health/ready"), 20)
        report = await report_of(proxy)
        assert (report["restarts"], report["last_exit_code"]) == (1, 137)
        await proxy.logged("backend_hangs")
        assert await proxy.end() == 0
        assert alive(*pids_in(programs.pids)) == []


async def test_a_backend_that_streams_lives(tmp_path: Path, programs: Programs) -> None:
    """One that answers no look, but sends a stream's pieces, is not ended in its midst."""
    mute = tmp_path / "mute"
    flags = programs.flags(
        "vllm",
        *(f"pids={programs.pids}", f"mute={mute}", "slow=0.2"),
        backend_liveness_timeout="1",
        backend_stop_seconds="0.1",
        backend_backoff_seconds="0.1",
    )
    body = {"model": "Tiny_Model", "messages": MESSAGES, "stream": True}
    async with (
        process(tmp_path, *flags, wait_for="/health/ready", **programs.environment) as proxy,
        ClientSession() as http,
    ):
        first = pids_in(programs.pids)
        async with http.post(proxy.url + CHAT, json=body) as response:
            await response.content.readuntil(b"\n\n")
            mute.touch()
            assert (await response.text()).endswith("data: [DONE]\n\n")
        assert alive(*first) == first
        await until(lambda: alive(*first) == [], 20)  # now it is silent
        mute.unlink()
        await until(lambda: proxy.answers("/health/ready"), 20)
        assert await proxy.end() == 0


async def test_a_predictor_that_cannot_go_on_is_started_again(tmp_path: Path) -> None:
    """It answers requests and looks, but 503 at its liveness path: the next one takes its place."""
    pids, over = tmp_path / "pids", tmp_path / "over"
    given = flags(
        f"pids={pids}",
        f"over={over}",
        **{"backend-liveness-timeout": "0.4", "backend-backoff-seconds": "0.1"},
    )
    async with process(tmp_path, *given, wait_for="/health/ready") as proxy:
        first = pids_in(pids)
        over.touch()
        await until(lambda: alive(*first) == [], 20)
        over.unlink()
        await until(lambda: proxy.answers("/health/ready"), 20)
        await proxy.logged("backend_is_over")
        assert await proxy.end() == 0
