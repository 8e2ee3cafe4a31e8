"""The engine's process, seen from the server: its start, its reports, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping

import msgspec
import structlog

from kserve_llamacpp.wire.frames import Command, FrameReader, Report, decode_report, encode

_READ_BYTES = 1 << 20
_EXIT_SECONDS = 5.0
_LAST_REPORTS_SECONDS = 1.0  # that a process has written before it died
_REAP_SECONDS = 1.0
_KILLED_SECONDS = 30.0  # the kernel frees a large process's memory first
_PASSING_ERRORS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.EINTR}
)
KILLED_WHILE_LOADING = (
    "the engine was killed (SIGKILL) while it loaded the model, most likely because the container "
    "ran out of memory: give it more memory, lower --n_ctx, or choose a smaller model"
)
# llama.cpp's threads meet at a barrier after every node of the graph, and GNU OpenMP's spin there
# for milliseconds by default. Where another process wants the CPU too (our own HTTP server does),
# a spinning thread keeps the one that it waits for from running: measured on 2 CPUs with two busy
# processes beside, 3.6 tok/s with the default against 13.9 with a bound. Too small a bound costs on
# a calm machine: ITL 23.9 ms with 1,000, 21.5 with 20,000, 21.0 with 300,000, the default.
_SPIN_COUNT = "20000"
_SPIN_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


class NotStarted(Exception):
    """No process could be made; `is_passing` where the cause may go away by itself."""

    def __init__(self, error: OSError | MemoryError) -> None:
        super().__init__(f"the engine's process cannot be started: {str(error) or 'out of memory'}")
        self.is_passing = isinstance(error, MemoryError) or error.errno in _PASSING_ERRORS


class ProcessStuck(Exception):
    """A process was killed, but its end is never told: no other may take its place."""


class EngineProcess:
    """One process after another, started by `run`; owner: the client."""

    def __init__(self, command: list[str], exit_seconds: float = _EXIT_SECONDS) -> None:
        """`command` starts the engine; `{fd}` in it stands for the number of its socket.

        Once the socket is closed, an engine has `exit_seconds` to leave before it is killed.
        """
        self._command = command
        self._exit_seconds = exit_seconds
        self._log = structlog.get_logger("engine.process")
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._groups: set[int] = set()  # of dead engines, whose children may have to be reaped

    @property
    def pid(self) -> int | None:
        """The process id, while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def num_unread_bytes(self) -> int:
        """How much was sent that the process has not read."""
        return self._writer.transport.get_write_buffer_size() if self._writer is not None else 0

    def send(self, command: Command) -> None:
        """Write a command; it is lost when the process is gone, and its sender will be told."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(command))

    def kill(self) -> None:
        """End the process at once, as one that hangs; `run` returns its status."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def run(self, on_report: Callable[[Report], None]) -> int | None:
        """Run one process to its end; return its exit status (negative: a signal), if known.

        A process that closes its socket, or writes what cannot be read, is ended. Raises NotStarted
        where there is no process, ProcessStuck where there is one that cannot be got rid of.
        """
        ours = await self._start()
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours)
            return await self._follow(reader, on_report)
        except TimeoutError:  # it closed its socket, but lives on
            return None
        finally:
            if self._writer is None:
                ours.close()
            else:
                self._writer.close()
            self._writer = None
            await self._end()

    async def _follow(
        self, reader: asyncio.StreamReader, on_report: Callable[[Report], None]
    ) -> int:
        """Read to the end of the process, whose socket its children may keep open."""
        assert self._process is not None
        assert self._writer is not None
        reading = asyncio.create_task(self._read(reader, on_report))
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({reading}, timeout=_LAST_REPORTS_SECONDS if ended.done() else None)
            if reading.done():
                reading.result()
            self._writer.close()  # an engine that wrote what cannot be read leaves by this
            return await asyncio.wait_for(ended, timeout=self._exit_seconds)
        finally:
            reading.cancel()
            ended.cancel()

    async def _start(self) -> socket.socket:
        """Start the process; return our end of its socket. Raises NotStarted."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise NotStarted(error) from error
        try:
            with theirs:
                fd = str(theirs.fileno())
                self._process = await asyncio.create_subprocess_exec(
                    *[part.replace("{fd}", fd) for part in self._command],
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,  # what it starts is in its group: see `_end_group`
                    env=worker_environment(os.environ),
                )
        except (OSError, MemoryError) as error:
            ours.close()
            raise NotStarted(error) from error
        except BaseException:
            ours.close()
            raise
        return ours

    async def _end(self) -> None:
        """See that the process has ended; raises ProcessStuck."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            try:
                await asyncio.wait_for(process.wait(), timeout=_KILLED_SECONDS)
            except TimeoutError:
                raise ProcessStuck(f"engine process {process.pid} does not end") from None
        self._end_group(process.pid)

    def _end_group(self, group: int) -> None:
        """End what a dead engine has started, and have it reaped a moment later.

        The first process of a container inherits it, and would keep one zombie more of each death.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        self._groups.add(group)
        loop = asyncio.get_running_loop()
        for dead in tuple(self._groups):
            self._reap(dead)
            loop.call_later(_REAP_SECONDS, self._reap, dead)

    def _reap(self, group: int) -> None:
        try:
            while os.waitpid(-group, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # none is left, or none is ours
            self._groups.discard(group)

    async def _read(
        self, reader: asyncio.StreamReader, on_report: Callable[[Report], None]
    ) -> None:
        frames = FrameReader()
        while True:
            try:
                data = await reader.read(_READ_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            try:
                reports = [decode_report(payload) for payload in frames.feed(data)]
            except (ValueError, msgspec.DecodeError):
                self._log.exception("engine_frame_invalid")
                return
            for report in reports:
                on_report(report)


def worker_command(options_json: str) -> list[str]:
    """Return the command that starts an engine process with these options."""
    return [sys.executable, "-m", "kserve_llamacpp.engine.worker", "{fd}", options_json]


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the engine's environment: the server's, with a bound on OpenMP's spinning.

    Whoever sets GOMP_SPINCOUNT or OMP_WAIT_POLICY knows better, and keeps it.
    """
    if any(name in environment for name in _SPIN_SETTINGS):
        return dict(environment)
    return {**environment, "GOMP_SPINCOUNT": _SPIN_COUNT}
