"""What servers may take of the memory, and what they took: cgroups, and peaks of processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import psutil

MIB = 1 << 20
_CGROUPS = Path("/sys/fs/cgroup")
_EVERY_SECONDS = 0.02
_numbers = itertools.count()


class MemoryGroup:
    """A cgroup (v2 or v1) with a limit of memory for the processes that are started in it."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Make it; raises OSError where this process may not."""
        self._folder = folder
        folder.mkdir()
        is_v1 = folder.joinpath("memory.limit_in_bytes").exists()
        limit = "memory.limit_in_bytes" if is_v1 else "memory.max"
        self._kills = "memory.oom_control" if is_v1 else "memory.events"
        try:
            folder.joinpath(limit).write_text(str(max_bytes))
        except OSError:
            folder.rmdir()
            raise

    @property
    def prefix(self) -> list[str]:
        """The beginning of a command line that starts a program in this group."""
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return ["sh", "-c", enter, str(self._folder)]

    @property
    def num_kills(self) -> int:
        """How many processes of it were killed for want of memory."""
        for line in self._folder.joinpath(self._kills).read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def remove(self) -> None:
        """Remove it, once its processes have ended."""
        for _ in range(100):
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.05)


def make_group(max_bytes: int) -> MemoryGroup | None:
    """Make a group; None, with a line in the output, where this machine lets us have none."""
    roots = (_CGROUPS / "memory", _CGROUPS)
    name = f"kserve-llamacpp-attack-{os.getpid()}-{next(_numbers)}"
    for root in roots:
        with contextlib.suppress(OSError):
            return MemoryGroup(root / name, max_bytes)
    print("attack: no cgroup can be made here: the servers run without a limit of memory")
    return None


def anonymous_bytes(pid: int) -> int:
    """Return what a process has taken for itself: neither files nor what it shares."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Peak:
    """Watches what a process and those below it have taken, until its block ends."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self.before = self.highest = self.now()

    def __enter__(self) -> Peak:
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._watch.join()

    @property
    def risen_mib(self) -> float:
        """How far it rose, in MiB."""
        return (self.highest - self.before) / MIB

    def now(self) -> int:
        """Return the bytes that they have now."""
        return sum(anonymous_bytes(pid) for pid in family(self._pid))

    def settled_mib(self, seconds: float, below: float) -> float:
        """Return how much is still taken, in MiB, once that is below a bound or time is up."""
        deadline = time.monotonic() + seconds
        while (risen := (self.now() - self.before) / MIB) > below and time.monotonic() < deadline:
            time.sleep(0.2)
        return risen

    def _look(self) -> None:
        while not self._is_over.wait(_EVERY_SECONDS):
            self.highest = max(self.highest, self.now())


def family(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    with contextlib.suppress(psutil.NoSuchProcess):
        yield from (child.pid for child in psutil.Process(pid).children(recursive=True))
