"""What keeps a backend from starting may pass: once it has been ready, it is tried again."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import psutil
import pytest

from openai_proxy.backends import guard, ports
from openai_proxy.backends.base import Checks, Life, Supervisor, SupervisorOptions
from openai_proxy.backends.kind import BackendError, ModelServer
from openai_proxy.backends.process import GuardedProcess
from tests.proxy.harness import until
from tests.proxy.test_backend_output import collected


@dataclass(frozen=True, slots=True)
class Scripted(ModelServer):
    """A backend whose nth process runs the nth command of the shell, the last one again."""

    scripts: list[str]

    name: ClassVar[str] = "scripted"
    program: ClassVar[str] = "sh"
    model: ClassVar[str] = "m"
    health_path: ClassVar[None] = None
    hopeless_codes: ClassVar[frozenset[int]] = frozenset({4})

    def command(self, host: str, port: int) -> list[str]:
        """Return the next command."""
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        return ["sh", "-c", script]


class Supervised:
    """A supervisor of a scripted backend, ready as soon as `is_loaded` is set; no real waits."""

    def __init__(self, *scripts: str) -> None:
        self.is_loaded = True
        self.urls: list[str | None] = []
        self.waits: list[float] = []

        async def loaded(_: str) -> bool:
            return self.is_loaded

        async def is_open(_: str) -> bool:
            return True

        async def warm(_: str) -> str | None:
            return "m"

        async def life(_: str, __: float) -> Life:
            return Life.ALIVE

        output, _ = collected()
        self.supervisor = Supervisor(
            Scripted(list(scripts)),
            SupervisorOptions(max_restarts=5, environment=dict(os.environ)),
            Checks(loaded, warm, is_open, life, lambda _: {}),
            output,
            self.urls.append,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0.01)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.supervisor.run())
        try:
            yield task
        finally:
            task.cancel()
            await self.supervisor.stop(0)
            with suppress(asyncio.CancelledError, BackendError):
                await task

    async def become_ready(self) -> None:
        await until(lambda: self.supervisor.is_ready, 30)


async def test_a_hopeless_end_may_pass_once_it_was_ready() -> None:
    """A model file that is away while the backend restarts does not end the proxy."""
    run = Supervised("sleep 100", "exit 4", "exit 4", "sleep 100")
    async with run.running() as task:
        await run.become_ready()
        assert not run.supervisor.is_restarting
        run.is_loaded = False
        run.supervisor.kill()
        await until(lambda: run.supervisor.num_restarts == 3, 30)
        assert run.supervisor.is_restarting
        run.is_loaded = True
        await run.become_ready()
        assert not task.done()


async def test_a_hopeless_end_at_the_first_start_ends_it() -> None:
    """What was never ready is not tried again: its setting is wrong."""
    run = Supervised("exit 4")
    run.is_loaded = False
    async with run.running() as task:
        with pytest.raises(BackendError) as caught:
            await asyncio.wait_for(asyncio.shield(task), 10)
        assert caught.value.exit_code == 4
        assert not run.supervisor.is_restarting


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
async def test_a_start_without_descriptors_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """When no process can be made just now, the next try comes after a wait."""
    start: Any = GuardedProcess.start
    failures = [OSError(number, "not now")] * 2

    async def refuse(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return await start(*arguments)

    monkeypatch.setattr(GuardedProcess, "start", refuse)
    run = Supervised("sleep 100")
    async with run.running() as task:
        await run.become_ready()
        assert not task.done()
        assert run.waits[:2] == [1, 2]


def test_a_port_that_cannot_be_looked_for_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors no setting is to blame: the error may pass."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(ports.socket, "socket", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        ports.find_port("127.0.0.1", 0)


async def test_a_start_that_fails_leaves_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where descriptors run out half-way, those that were opened are closed."""
    pipe = os.pipe
    made: list[tuple[int, int]] = []

    def one_pipe() -> tuple[int, int]:
        if made:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(pipe())
        return made[0]

    output, _ = collected()
    monkeypatch.setattr(os, "pipe", one_pipe)
    with pytest.raises(OSError, match="Too many open files"):
        await GuardedProcess.start(["true"], output, {})
    for descriptor in made[0]:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_command_is_ended_before_it_has_a_group() -> None:
    """One that is to be killed as soon as it is started does not live on."""
    with subprocess.Popen(["sleep", "100"]) as child:  # in this process's group
        guard.signal_group(child.pid, signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL


async def test_the_guard_keeps_no_zombies() -> None:
    """What the command's children leave behind is reaped while the command runs, not at its end."""
    orphans = "for _ in 1 2 3; do (sleep 0.01 & true); done; sleep 1000"
    command = [sys.executable, "-I", "-S", guard.__file__, "sh", "-c", orphans]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:  # noqa: ASYNC220  # at once
        process = psutil.Process(child.pid)
        await until(lambda: len(process.children(recursive=True)) >= 2, 20)
        await asyncio.sleep(0.3)

        def is_clean() -> bool:
            return [one.name() for one in process.children(recursive=True)] == ["sh", "sleep"]

        await until(is_clean, 20)
        assert child.stdin is not None
        child.stdin.write(b"K")
        child.stdin.flush()
        assert child.wait(20) == 137
