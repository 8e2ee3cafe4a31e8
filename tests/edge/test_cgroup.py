"""What the container may use, read from made-up cgroup trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from http_edge.cgroup import available_memory, num_cpus

_MB = 1 << 20


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


_V2 = "sys/fs/cgroup"
_V1_CPU = "sys/fs/cgroup/cpu,cpuacct"
_V1_MEMORY = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("60000 20000", 3),
    ],
)
def test_a_quota_of_v2_bounds_the_threads(tmp_path: Path, quota: str, cpus: int) -> None:
    """Whole CPUs of the quota count, at least one, and never more than the affinity has."""
    root = _tree(tmp_path, {f"{_V2}/cpu.max": quota})

    assert num_cpus(root, affinity=8) == cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("-1", 8), ("400000", 4), ("150000", 1), ("50000", 1), ("1600000", 8)]
)
def test_a_quota_of_v1_bounds_the_threads(tmp_path: Path, quota: str, cpus: int) -> None:
    """The same holds for cgroup v1, where -1 is no quota."""
    files = {f"{_V1_CPU}/cpu.cfs_quota_us": quota, f"{_V1_CPU}/cpu.cfs_period_us": "100000"}

    assert num_cpus(_tree(tmp_path, files), affinity=8) == cpus


def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    """A machine without cgroups uses the CPUs that the process may run on."""
    assert num_cpus(tmp_path, affinity=6) == 6
    assert num_cpus(tmp_path) >= 1


def test_the_tightest_quota_of_nested_groups_counts(tmp_path: Path) -> None:
    """A group cannot use more than any group above it: the least of them all is taken."""
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/container",
            f"{_V2}/cpu.max": "max 100000",
            f"{_V2}/pod/cpu.max": "200000 100000",
            f"{_V2}/pod/container/cpu.max": "600000 100000",
            f"{_V2}/other/cpu.max": "100000 100000",
        },
    )

    assert num_cpus(root, affinity=8) == 2


def test_v1_groups_are_found_by_their_controller(tmp_path: Path) -> None:
    """In cgroup v1 each controller has a tree and a path of its own."""
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/b\n1:name=systemd:/c",
            f"{_V1_CPU}/a/cpu.cfs_quota_us": "300000",
            f"{_V1_CPU}/a/cpu.cfs_period_us": "100000",
            f"{_V1_CPU}/b/cpu.cfs_quota_us": "100000",
            f"{_V1_CPU}/b/cpu.cfs_period_us": "100000",
            f"{_V1_MEMORY}/b/memory.limit_in_bytes": str(900 * _MB),
            f"{_V1_MEMORY}/a/memory.limit_in_bytes": str(100 * _MB),
        },
    )

    assert num_cpus(root, affinity=8) == 3
    assert available_memory(root) == 900 * _MB


@pytest.mark.parametrize("path", ["/../../elsewhere", "/not/mounted/here"])
def test_a_path_outside_the_mount_falls_back_to_its_root(tmp_path: Path, path: str) -> None:
    """Inside a container the group's path may not exist below the mount: its root is taken."""
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{path}",
            f"{_V2}/cpu.max": "200000 100000",
            "sys/cpu.max": "100000 100000",
        },
    )

    assert num_cpus(root, affinity=8) == 2


def test_free_memory_of_v2_counts_the_page_cache(tmp_path: Path) -> None:
    """What is left is the limit less what is used, but not less what the kernel gives back."""
    root = _tree(
        tmp_path,
        {
            f"{_V2}/memory.max": str(1000 * _MB),
            f"{_V2}/memory.current": str(700 * _MB),
            f"{_V2}/memory.stat": f"anon 5\ninactive_file {100 * _MB}\nactive_file {200 * _MB}",
        },
    )

    assert available_memory(root) == 600 * _MB


def test_free_memory_of_v1_counts_the_page_cache(tmp_path: Path) -> None:
    """The same holds for cgroup v1, under its own names."""
    root = _tree(
        tmp_path,
        {
            f"{_V1_MEMORY}/memory.limit_in_bytes": str(1000 * _MB),
            f"{_V1_MEMORY}/memory.usage_in_bytes": str(700 * _MB),
            f"{_V1_MEMORY}/memory.stat": f"inactive_file 5\ntotal_inactive_file {100 * _MB}\n"
            f"active_file 5\ntotal_active_file {200 * _MB}",
        },
    )

    assert available_memory(root) == 600 * _MB


@pytest.mark.parametrize(
    "files",
    [
        {f"{_V2}/memory.max": "max", f"{_V2}/memory.current": "5"},
        {f"{_V1_MEMORY}/memory.limit_in_bytes": "9223372036854771712"},
        {},
    ],
)
def test_without_a_limit_the_machine_counts(tmp_path: Path, files: dict[str, str]) -> None:
    """Without a limit (v1 writes one near 2**63) the machine's available memory is taken."""
    assert available_memory(_tree(tmp_path, files)) is None

    _tree(tmp_path, {"proc/meminfo": "MemTotal: 999 kB\nMemAvailable:   2048 kB\nX: 1"})

    assert available_memory(tmp_path) == 2 * _MB


def test_the_tightest_room_of_nested_groups_and_the_machine_counts(tmp_path: Path) -> None:
    """The first limit that would be hit is what can still be taken."""
    root = _tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/container",
            "proc/meminfo": f"MemAvailable: {500 * 1024} kB",
            f"{_V2}/pod/memory.max": str(300 * _MB),
            f"{_V2}/pod/memory.current": str(100 * _MB),
            f"{_V2}/pod/container/memory.max": str(400 * _MB),
            f"{_V2}/pod/container/memory.current": str(0),
        },
    )

    assert available_memory(root) == 200 * _MB


def test_memory_that_is_overdrawn_is_none_left(tmp_path: Path) -> None:
    """A group over its limit has no room, rather than less than none."""
    root = _tree(tmp_path, {f"{_V2}/memory.max": str(_MB), f"{_V2}/memory.current": str(2 * _MB)})

    assert available_memory(root) == 0


def test_where_nothing_is_known_nothing_is_claimed(tmp_path: Path) -> None:
    """Without cgroups and without /proc the memory is unknown."""
    assert available_memory(tmp_path) is None
