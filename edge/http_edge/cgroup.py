"""What the container may use: CPUs and memory, from cgroup v1 or v2.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


def num_cpus(root: Path = Path("/"), affinity: int | None = None) -> int:
    """Return how many threads can run at once: the affinity's CPUs, or fewer by quota; at least 1.

    A quota of 1.5 CPUs gives 1: a second thread would be throttled, and the first wait for it.
    """
    cpus = affinity if affinity is not None else len(os.sched_getaffinity(0))
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return max(1, min([cpus, *(int(quota) for quota in quotas)]))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes can still be taken before a limit or the machine ends, if known.

    Page cache counts as free, also that which was used lately (a model's file, after its engine
    died): the kernel gives it back.
    """
    rooms = [*_rooms_v2(root), *_rooms_v1(root), *_machine_room(root)]
    return max(0, min(rooms)) if rooms else None


def _quotas_v2(root: Path) -> Iterator[float]:
    for group in _groups(root, "", "sys/fs/cgroup"):
        words = _read(group / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            yield int(words[0]) / int(words[1])


def _quotas_v1(root: Path) -> Iterator[float]:
    for mount in ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"):
        for group in _groups(root, "cpu", mount):
            quota = _read(group / "cpu.cfs_quota_us")
            period = _read(group / "cpu.cfs_period_us")
            if quota and period and int(quota) > 0:
                yield int(quota) / int(period)


def _rooms_v2(root: Path) -> Iterator[int]:
    for group in _groups(root, "", "sys/fs/cgroup"):
        limit = _read(group / "memory.max")
        if limit and limit != "max":
            used = int(_read(group / "memory.current") or 0)
            cache = _stat(group, "inactive_file") + _stat(group, "active_file")
            yield int(limit) - used + cache


def _rooms_v1(root: Path) -> Iterator[int]:
    for group in _groups(root, "memory", "sys/fs/cgroup/memory"):
        limit = _read(group / "memory.limit_in_bytes")
        if limit and int(limit) < _UNLIMITED:
            used = int(_read(group / "memory.usage_in_bytes") or 0)
            cache = _stat(group, "total_inactive_file") + _stat(group, "total_active_file")
            yield int(limit) - used + cache


def _machine_room(root: Path) -> Iterator[int]:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups(root: Path, controller: str, mount: str) -> Iterator[Path]:
    """Yield the process's group and those above it, up to the mount (the namespace's own root)."""
    top = root / mount
    own = PurePosixPath(_own_path(root, controller))
    for path in (own, *own.parents):
        yield top / path.relative_to("/")


def _own_path(root: Path, controller: str) -> str:
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and ".." not in path:
            return path
    return "/"


def _stat(group: Path, key: str) -> int:
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
