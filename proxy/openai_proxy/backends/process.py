"""A process under the guard: started, asked to stop, ended for sure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from openai_proxy.backends.output import Output

GUARD = Path(__file__).with_name("guard.py")
LAST_LINES_SECONDS = 1.0
# Between two reads of a backend that writes more than is passed on: its pipe is full meanwhile,
# so that it costs little, and goes on writing, if slowly.
FLOODED_SECONDS = 0.001


class GuardedProcess:
    """One run of a command; owner of the guard's life line and of the output's pipe.

    Invariant: when this process ends, however that comes, the command's process group ends too.
    """

    def __init__(
        self,
        guard: asyncio.subprocess.Process,
        life_line: int,
        pipe: asyncio.ReadTransport,
        reader: _Reader,
    ) -> None:
        self._guard = guard
        self._life_line: int | None = life_line
        self._pipe = pipe
        self._reader = reader

    @classmethod
    async def start(
        cls, command: list[str], output: Output, environment: Mapping[str, str]
    ) -> GuardedProcess:
        """Start a command in this environment; its stdout and stderr go to `output`."""
        theirs, life_line = os.pipe()
        try:
            out, written = os.pipe()
        except OSError:
            os.close(theirs)
            os.close(life_line)
            raise
        pipe_end = os.fdopen(out, "rb", 0)
        output.begin()
        try:
            guard = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(GUARD), *command),
                stdin=theirs,
                stdout=written,
                stderr=written,
                start_new_session=True,
                env=environment,
            )
            pipe, reader = await asyncio.get_running_loop().connect_read_pipe(
                lambda: _Reader(output), pipe_end
            )
        except BaseException:
            pipe_end.close()
            os.close(life_line)
            raise
        finally:
            os.close(theirs)
            os.close(written)
        return cls(guard, life_line, pipe, reader)

    @property
    def pid(self) -> int:
        """The guard's process id: the command and all that it starts are below it."""
        return self._guard.pid

    async def wait(self) -> int:
        """Wait for the end; returns the command's exit status, 128 + N for signal N."""
        status = await self._guard.wait()
        # What has left the guard's reach may hold the pipe open; its lines are not waited for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_LINES_SECONDS):
                await self._reader.ended.wait()
        self._pipe.close()
        if self._life_line is not None:
            os.close(self._life_line)
            self._life_line = None
        return status if status >= 0 else 128 - status

    async def stop(self, grace_seconds: float) -> int:
        """Ask the command to finish, end its group after the grace period; as `wait`."""
        self._order(b"T")
        try:
            async with asyncio.timeout(grace_seconds):
                await self._guard.wait()
        except TimeoutError:
            self.kill()
        return await self.wait()

    def kill(self) -> None:
        """End the command's group at once."""
        self._order(b"K")

    def _order(self, letter: bytes) -> None:
        if self._life_line is not None:
            with contextlib.suppress(BrokenPipeError):  # the guard has ended by itself
                os.write(self._life_line, letter)


class _Reader(asyncio.Protocol):
    def __init__(self, output: Output) -> None:
        self.ended = asyncio.Event()
        self._output = output
        self._pipe: asyncio.ReadTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe = cast("asyncio.ReadTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._output.feed(data)
        if self._output.is_flooded:
            assert self._pipe is not None
            self._pipe.pause_reading()
            asyncio.get_running_loop().call_later(FLOODED_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._pipe is not None and not self._pipe.is_closing():
            self._pipe.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._output.end()
        self.ended.set()
