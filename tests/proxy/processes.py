"""The proxy as a real process, and what becomes of processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.proxy.harness import refused_port, until

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).with_name("standin")
PYTHONPATH = os.pathsep.join(str(ROOT / part) for part in ("protocol", "edge", "proxy"))


def environment(**variables: str) -> dict[str, str]:
    """The environment of a proxy process: this one's, without settings, plus the stand-in."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("OPENAI_PROXY_")
    }
    path = os.pathsep.join((str(STANDIN), PYTHONPATH))
    return {**kept, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **variables}


@dataclass
class Process:
    """A proxy process; its log is in a file."""

    port: int
    process: asyncio.subprocess.Process
    log: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def status(self, path: str) -> int | None:
        """The status of a GET, or None where nobody answers."""
        return await asyncio.to_thread(_status, self.url + path)

    async def logged(self, text: str, seconds: float = 5) -> str:
        """The whole log, once it has this text: a thread writes it, a little after the event."""
        await until(lambda: text in self.log.read_text(), seconds)
        return self.log.read_text()

    async def answers(self, path: str, status: int = 200) -> bool:
        """Whether a GET has this status."""
        return await self.status(path) == status

    async def end(self, number: int = signal.SIGTERM, seconds: float = 10) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), seconds)


@asynccontextmanager
async def process(
    tmp_path: Path,
    *flags: str,
    wait_for: str = "/health/live",
    cwd: Path | None = None,
    **env: str,
):
    """Run `python -m openai_proxy` until the block ends."""
    port = refused_port()
    log = tmp_path / f"proxy-{port}.log"
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--drain-delay-seconds", "0", *flags]
    with log.open("wb") as out:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "openai_proxy", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
            env=environment(**env), cwd=cwd,
        )  # fmt: skip
    running = Process(port, child, log)
    try:
        if wait_for:
            await until(lambda: running.answers(wait_for), 20)
        yield running
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def run(*arguments: str, **env: str) -> tuple[int, str, str]:
    """Run `python -m openai_proxy` to its end; returns exit code, stdout and stderr."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "openai_proxy", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=environment(**env),
    )  # fmt: skip
    out, err = await asyncio.wait_for(child.communicate(), 20)
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


def alive(*pids: int) -> list[int]:
    """Those of the processes that still run (zombies do not)."""
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def pids_in(file: Path) -> list[int]:
    """The process ids that stand-ins have written."""
    return [int(line) for line in file.read_text().split()] if file.exists() else []


async def measured_start(tmp_path: Path, *flags: str) -> tuple[float, float, int]:
    """Start a proxy; seconds and CPU seconds until it answered, and its memory some time later."""
    started = time.perf_counter()
    async with process(tmp_path, *flags, wait_for="") as proxy:
        await until(lambda: _is_open(proxy.port), 20, every=0.005)
        await until(lambda: proxy.answers("/health/live"), 20, every=0.005)
        seconds = time.perf_counter() - started
        times = psutil.Process(proxy.pid).cpu_times()
        await until(lambda: proxy.answers("/v1/models"), 20)
        await until(lambda: proxy.answers("/health/ready"), 20)
        await asyncio.sleep(0.5)
        return seconds, times.user + times.system, psutil.Process(proxy.pid).memory_info().rss


async def _is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


def answering(url: str) -> bool:
    """Whether a GET has the status 200 now."""
    return _status(url) == 200


def _status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # a test's own URL
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None
