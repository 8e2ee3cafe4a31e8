"""An engine's process without a server: what is said to it, and what it answers."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kserve_llamacpp.config import add_flags, read_config
from kserve_llamacpp.engine_client.process import worker_command, worker_environment
from kserve_llamacpp.served_model import worker_options
from kserve_llamacpp.wire.frames import (
    Command,
    Fatal,
    FrameReader,
    Hello,
    Report,
    Step,
    decode_report,
    encode,
)

_SECONDS = 300.0  # of silence
_EXIT_SECONDS = 20.0
_LOG_BYTES = 2000
_READ_BYTES = 1 << 16


class EngineFailed(Exception):
    """An engine did not load, was silent or is gone; the text says why, with its log's end."""


class Reports(Iterator[Report]):
    """What an engine reports, one after another, until it closes its end; owner: one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._read: deque[Report] = deque()

    def __next__(self) -> Report:
        """Wait for the next report; raises OSError when none comes in the socket's time."""
        while not self._read:
            if not (data := self._sock.recv(_READ_BYTES)):
                raise StopIteration
            self._read += [decode_report(payload) for payload in self._reader.feed(data)]
        return self._read.popleft()

    def drop(self) -> None:
        """Drop the reports that have come and were not asked for."""
        self._read.clear()
        seconds = self._sock.gettimeout()
        self._sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while data := self._sock.recv(_READ_BYTES):
                self._reader.feed(data)
        self._sock.settimeout(seconds)


class BareEngine:
    """The other end of an engine's socket; owner: one thread."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes], log: IO[bytes]):
        self._sock = sock
        self._process = process
        self._log = log
        self._reports = Reports(sock)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The process's exit status, None while it runs."""
        return self._process.poll()

    def send(self, command: Command) -> None:
        """Write a command; raises EngineFailed."""
        try:
            self._sock.sendall(encode(command))
        except OSError as error:
            raise self._failed(f"the engine takes no commands ({error})") from error

    def next_step(self) -> Step:
        """Return the next step's report; raises EngineFailed."""
        while not isinstance(report := self._next_report(), Step):
            pass
        return report

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let the process run in the block; behind it, it stands still with all that it holds.

        The first report in the block may be that of a step in whose middle it stood still.
        """
        self._reports.drop()
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def wait_until_loaded(self) -> None:
        """Wait until the engine takes requests; raises EngineFailed."""
        while not isinstance(self._next_report(), Hello):
            pass

    def _next_report(self) -> Report:
        try:
            report = next(self._reports, None)
        except OSError as error:
            raise self._failed(f"the engine said nothing for {_SECONDS:.0f} s") from error
        if report is None:
            raise self._failed("the engine ended")
        if isinstance(report, Fatal):
            raise EngineFailed(report.message)
        return report

    def _failed(self, what: str) -> EngineFailed:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_BYTES))
        return EngineFailed(f"{what}:\n{self._log.read().decode('utf-8', 'replace')}")


@contextlib.contextmanager
def bare_engine(
    options: str, sockets: tuple[socket.socket, socket.socket] | None = None
) -> Iterator[BareEngine]:
    """Run an engine, loaded and with nothing to do; raises EngineFailed.

    `options` are those of `engine_options`; `sockets` are our end and the engine's.
    """
    ours, theirs = sockets or socket.socketpair()
    with ours, tempfile.TemporaryFile() as log:
        with theirs:
            command = [
                part.replace("{fd}", str(theirs.fileno())) for part in worker_command(options)
            ]
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=worker_environment(os.environ),
            )
        ours.settimeout(_SECONDS)
        try:
            engine = BareEngine(ours, process, log)
            engine.wait_until_loaded()
            yield engine
        finally:
            ours.close()  # an engine leaves by this
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def engine_options(model_path: Path, *flags: str) -> str:
    """Return what an engine is told at its start: the server's own defaults, changed by flags."""
    from kserve import model_server  # heavy, and needed here alone

    parser = argparse.ArgumentParser(parents=[model_server.parser], add_help=False)
    add_flags(parser)
    given = [f"--model_dir={model_path}", "--log_level=error", *flags]
    return worker_options(read_config(parser.parse_args(given)))
