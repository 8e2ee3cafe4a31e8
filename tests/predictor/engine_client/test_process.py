"""The engine's process over a real socket: small Python children play the engine."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from kserve_llamacpp.engine_client.process import (
    EngineProcess,
    NotStarted,
    ProcessStuck,
    worker_command,
)
from kserve_llamacpp.wire.frames import Cancel, Loading, Report

_PR_SET_CHILD_SUBREAPER = 36
# Each child gets the number of its socket and these few lines before its own.
_PRELUDE = """
import socket, struct, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
def read(count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            sys.exit(9)
        data += piece
    return data
def read_frame():
    return read(struct.unpack(">I", read(4))[0])
def write_loading(fraction):
    payload = b"\\x82\\xa4type\\xa7Loading\\xa8fraction\\xcb" + struct.pack(">d", fraction)
    sock.sendall(struct.pack(">I", len(payload)) + payload)
"""


def _process(lines: str, **settings: Any) -> EngineProcess:
    child = _PRELUDE + textwrap.dedent(lines)
    # -S and -I: these children start in a tenth of the time without site-packages
    return EngineProcess([sys.executable, "-I", "-S", "-c", child, "{fd}"], **settings)


async def test_frames_travel_both_ways() -> None:
    """Reports reach the server, commands the engine, and its exit status is returned."""
    process = _process(
        """
        write_loading(0.5)
        command = read_frame()
        assert b"Cancel" in command and command.endswith(b"\\x07"), command
        write_loading(1.0)
        sys.exit(3)
        """
    )
    reports: list[Report] = []

    def on_report(report: Report) -> None:
        reports.append(report)
        if report == Loading(0.5):
            assert process.pid is not None
            process.send(Cancel(7))

    assert await process.run(on_report) == 3
    assert reports == [Loading(0.5), Loading(1.0)]
    assert process.pid is None


async def test_a_killed_engine_gives_its_signal() -> None:
    """The exit status of a process that a signal ended is the signal's number, negative."""
    process = _process(
        """
        write_loading(0.0)
        read_frame()
        """
    )

    def kill(_: Report) -> None:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)

    assert await process.run(kill) == -signal.SIGKILL


@pytest.mark.parametrize(
    "garbage",
    [
        "sock.sendall(b'\\xff' * 100)",
        "sock.sendall(struct.pack('>I', 3) + b'\\xc1\\xc1\\xc1')",
        "sock.sendall(struct.pack('>I', 1) + b'\\x80')",
    ],
)
async def test_an_engine_that_writes_garbage_is_ended(garbage: str) -> None:
    """What cannot be read ends the process at once: its socket is closed, and it leaves."""
    process = _process(
        f"""
        {garbage}
        read_frame()
        time.sleep(60)
        """
    )

    # 9: it found its socket closed
    assert await asyncio.wait_for(process.run(pytest.fail), 10) == 9


async def test_an_engine_that_closes_its_socket_but_lives_is_killed() -> None:
    """A process that is not to be talked to is killed when its time to leave is over."""
    process = _process(
        """
        write_loading(0.0)
        sock.close()
        time.sleep(60)
        """,
        exit_seconds=0.05,
    )
    pids: list[int] = []

    status = await asyncio.wait_for(process.run(lambda _: pids.append(process.pid or 0)), 10)

    assert status is None
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_a_cancelled_run_leaves_no_process() -> None:
    """Whoever cancels `run` can rely on the process being gone."""
    process = _process(
        """
        write_loading(0.0)
        time.sleep(60)
        """
    )
    began = asyncio.Event()
    run = asyncio.create_task(process.run(lambda _: began.set()))
    await began.wait()
    pid = process.pid
    assert pid is not None

    run.cancel()

    with pytest.raises(asyncio.CancelledError):
        await run
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_one_process_runs_after_another() -> None:
    """The same object starts the next process when one has ended."""
    process = _process("write_loading(1.0); sys.exit(4)")
    reports: list[Report] = []

    assert [await process.run(reports.append) for _ in range(2)] == [4, 4]
    assert reports == [Loading(1.0)] * 2


async def test_a_command_for_nobody_is_lost() -> None:
    """Sending before the first process and after the last one is no error."""
    process = _process("sys.exit(0)")
    process.send(Cancel(1))
    await process.run(pytest.fail)

    process.send(Cancel(1))


def test_the_engine_is_started_by_this_python() -> None:
    """The engine's process runs in the server's own environment, with its options as JSON."""
    command = worker_command('{"a": 1}')

    assert command[0] == sys.executable
    assert command[1:] == ["-m", "kserve_llamacpp.engine.worker", "{fd}", '{"a": 1}']


def _num_open() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
async def test_a_process_that_cannot_be_made_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What may pass is told as such, and no descriptor stays open."""

    async def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, "not now")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    before = _num_open()
    with pytest.raises(NotStarted, match="not now") as caught:
        await _process("").run(lambda _: None)

    assert caught.value.is_passing
    assert _num_open() == before


async def test_a_program_that_is_not_there_will_not_pass() -> None:
    """Without the program no try helps."""
    with pytest.raises(NotStarted) as caught:
        await EngineProcess(["/no/such/program", "{fd}"]).run(lambda _: None)

    assert not caught.value.is_passing


async def test_a_process_whose_end_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even SIGKILL brings news of the end, `run` does not wait for ever."""

    async def never(_: asyncio.subprocess.Process) -> int:
        return await asyncio.Event().wait()  # type: ignore[return-value]  # it does not return

    monkeypatch.setattr(asyncio.subprocess.Process, "wait", never)
    monkeypatch.setattr("kserve_llamacpp.engine_client.process._KILLED_SECONDS", 0.05)
    with pytest.raises(ProcessStuck):
        await _process("sock.close(); time.sleep(60)", exit_seconds=0.05).run(lambda _: None)


async def test_what_an_engine_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of an engine that was killed is ended, and leaves no zombie to whoever adopts it.

    It had the engine's socket, too, and its end is not waited for.
    """
    monkeypatch.setattr("kserve_llamacpp.engine_client.process._REAP_SECONDS", 0.1)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # as the first process of a container is
    try:
        process = _process(
            """
            import os
            if os.fork() == 0:
                time.sleep(60)
            write_loading(0.0)
            read_frame()
            """
        )
        children: list[psutil.Process] = []

        def kill(_: Report) -> None:
            assert process.pid is not None
            children.extend(psutil.Process(process.pid).children())
            os.kill(process.pid, signal.SIGKILL)

        assert await process.run(kill) == -signal.SIGKILL
        assert len(children) == 1
        async with asyncio.timeout(10):
            while psutil.pid_exists(children[0].pid):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.02)
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
