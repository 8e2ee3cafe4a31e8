"""The log file: its size is bounded, and it may be moved away."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from http_edge.log_sink import write_all
from openai_proxy import log_file
from openai_proxy.log_file import RotatingFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "proxy.log"


def lines(*numbers: int) -> list[str]:
    """Lines of ten bytes."""
    return [f"line {number:04}\n" for number in numbers]


def contents(path: Path) -> dict[str, str]:
    """All files beside a log file, with what is in them."""
    return {file.name: file.read_text() for file in sorted(path.parent.iterdir())}


def test_rotation_by_size(path: Path) -> None:
    """No file is larger than the limit, the newest backups are kept, each line is whole."""
    file = RotatingFile(path, max_bytes=35, num_backups=2)
    file.write(lines(*range(7)))
    for number in range(7, 11):
        file.write(lines(number))
    assert contents(path) == {
        "proxy.log": "".join(lines(9, 10)),
        "proxy.log.1": "".join(lines(6, 7, 8)),
        "proxy.log.2": "".join(lines(3, 4, 5)),
    }


def test_a_line_longer_than_the_limit_has_a_file_of_its_own(path: Path) -> None:
    """It is written whole, and the next line goes to the next file."""
    file = RotatingFile(path, max_bytes=15, num_backups=1)
    file.write(["x" * 30 + "\n", *lines(1)])
    assert contents(path) == {"proxy.log": "line 0001\n", "proxy.log.1": "x" * 30 + "\n"}


def test_no_backups(path: Path) -> None:
    """Without backups, the full file is dropped."""
    file = RotatingFile(path, max_bytes=15)
    file.write(lines(1, 2, 3))
    assert contents(path) == {"proxy.log": "line 0003\n"}


def test_no_rotation(path: Path) -> None:
    """Without limits, all goes to one file."""
    file = RotatingFile(path, num_backups=3)
    file.write(lines(*range(1000)))
    assert contents(path) == {"proxy.log": "".join(lines(*range(1000)))}


def test_rotation_by_time(path: Path) -> None:
    """A file holds the lines of one period; an empty one is not kept."""
    now = [10 * 86400.0 + 5]
    file = RotatingFile(path, num_backups=5, rotate_seconds=86400, clock=lambda: now[0])
    now[0] += 2 * 86400
    for number in range(4):
        file.write(lines(number))
        now[0] += 40000
    assert contents(path) == {
        "proxy.log": "line 0003\n",
        "proxy.log.1": "".join(lines(0, 1, 2)),
    }


def test_rotation_by_time_across_a_restart(path: Path) -> None:
    """What an earlier process wrote in an earlier period is rotated, what is of this one stays."""
    path.write_text("older\n")
    written = path.stat().st_mtime
    made: dict[str, Any] = {"num_backups": 5, "rotate_seconds": 86400}
    RotatingFile(path, **made, clock=lambda: written).write(["same\n"])
    assert contents(path) == {"proxy.log": "older\nsame\n"}
    os.utime(path, (written, written))
    RotatingFile(path, **made, clock=lambda: written + 86400).write(["next\n"])
    assert contents(path) == {"proxy.log": "next\n", "proxy.log.1": "older\nsame\n"}


def test_a_file_that_is_moved_is_opened_anew(path: Path) -> None:
    """As logrotate does it: moved away, moved away with a new one put there, or copied and cut."""
    file = RotatingFile(path)
    file.write(lines(1))
    path.rename(path.with_name("moved"))
    file.write(lines(2))
    path.rename(path.with_name("again"))
    path.touch()
    file.write(lines(3))
    assert contents(path) == {
        "again": "line 0002\n",
        "moved": "line 0001\n",
        "proxy.log": "line 0003\n",
    }
    os.truncate(path, 0)
    file.write(lines(4))
    assert path.read_text() == "line 0004\n"


def test_a_file_that_cannot_be_renamed_is_emptied(path: Path) -> None:
    """The disk does not fill up where rotation fails, and that is told."""
    failures: list[Exception] = []
    path.with_name("proxy.log.1").mkdir()
    file = RotatingFile(path, max_bytes=25, num_backups=1, on_failure=failures.append)
    file.write(lines(1, 2, 3))
    assert path.read_text() == "line 0003\n"
    assert len(failures) == 1


def test_a_torn_line_does_not_spoil_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a write that failed in the middle, the next line begins on a line of its own."""
    file = RotatingFile(path)
    file.write(lines(1))

    def fail(fd: int, data: bytes) -> None:
        write_all(fd, data[:4])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(log_file, "write_all", fail)
        with pytest.raises(OSError, match="No space"):
            file.write(lines(2))
    file.write(lines(3))
    assert path.read_text() == "line 0001\nline\nline 0003\n"


def test_a_device_is_only_written_to() -> None:
    """Nothing is renamed or emptied that is no file; a full device is an error."""
    RotatingFile(Path("/dev/null"), max_bytes=1, num_backups=1, rotate_seconds=1).write(lines(1, 2))
    with pytest.raises(OSError, match="No space"):
        RotatingFile(Path("/dev/full")).write(lines(1))


def test_a_pipe_without_a_reader_is_an_error(path: Path) -> None:
    """Opening it does not wait for a reader that may never come."""
    os.mkfifo(path)
    began = time.perf_counter()
    with pytest.raises(OSError, match=r"No such device"):
        RotatingFile(path)
    assert time.perf_counter() - began < 1


def test_only_owner_and_group_may_read_it(path: Path) -> None:
    """A new file is not open to everybody."""
    RotatingFile(path)
    assert path.stat().st_mode & 0o007 == 0
