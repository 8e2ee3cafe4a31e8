"""The processes of a run: bound to it, on processors of their own, measured from outside."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from bench.servers import ServerFailed

STOP_SECONDS = 20.0
_LOG_BYTES = 2000
_ANY = "-"


@dataclass(frozen=True)
class Processors:
    """Who computes where, as wire/child.c takes it: what is measured has a processor for itself."""

    proxy: str
    upstream: str
    client: str

    @classmethod
    def share_out(cls, available: Sequence[int]) -> Processors:
        """Share out processors; with a single one, all compute anywhere."""
        if len(available) < 2:
            return cls(_ANY, _ANY, _ANY)
        proxy, upstream, *others = available
        return cls(str(proxy), str(upstream), str(others[0] if others else upstream))

    def __str__(self) -> str:
        if self.proxy == _ANY:
            return "one processor for all"
        return (
            f"proxy on processor {self.proxy}, upstream on {self.upstream}, client on {self.client}"
        )


@dataclass(frozen=True)
class Family:
    """A process and its children, seen from outside."""

    pid: int

    def cpu_seconds(self) -> float:
        """Return the processor time that they have taken."""
        return sum(sum(member.cpu_times()[:2]) for member in self._members())

    def rss_mib(self) -> float:
        """Return their resident memory."""
        return sum(float(member.memory_info().rss) for member in self._members()) / (1 << 20)

    def _members(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.Error as error:
            raise ServerFailed(f"process {self.pid} has ended in the middle of a load") from error


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    **pipes: Any,
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a program in the block; also given is what returns the end of its log.

    `environment` is added to ours; `pipes` are those that the caller wants. The program is
    expected to bind itself to us, as wire/child.c does.
    """
    with tempfile.TemporaryFile() as log:
        given = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **pipes}
        try:
            process = subprocess.Popen(
                [os.fspath(part) for part in command],
                env={**_without_ours(os.environ), **(environment or {})},
                **given,
            )
        except OSError as error:
            raise ServerFailed(f"{name} cannot be run: {error.strerror or error}") from error
        try:
            yield process, lambda: _end_of(log)
        finally:
            _stop(process)


def check_limit_of_files(num_streams: int) -> None:
    """Raise ServerFailed where a proxy could not hold so many streams: two sockets for each."""
    needed = 2 * num_streams + 256
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and hard < needed:
        raise ServerFailed(
            f"{num_streams} streams need {needed} open files in one process, and the limit is "
            f"{hard}: raise it (`ulimit -Hn` as root, LimitNOFILE of a service), or give "
            "--open-streams and --paced-streams that fit"
        )


def wait_for(
    condition: Callable[[], bool],
    process: subprocess.Popen[bytes],
    seconds: float,
    failure: Callable[[], str],
) -> None:
    """Wait until a condition holds; raises ServerFailed when the process ends or time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(failure())
        time.sleep(0.002)


def _without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """Leave out what would configure our proxy: defaults are measured, and what flags say."""
    return {name: value for name, value in environ.items() if not name.startswith("OPENAI_PROXY_")}


def _end_of(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _LOG_BYTES))
    return log.read().decode("utf-8", "replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
