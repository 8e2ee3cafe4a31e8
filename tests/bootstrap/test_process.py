"""Child processes: their log, their failure, and their end."""

import os
import sys
import time
from pathlib import Path

import pytest

from bootstrap import process
from bootstrap.errors import BootstrapError, CommandFailed


def test_output_is_kept_and_passed_on(tmp_path: Path) -> None:
    """Both streams go to the log, line by line to the caller."""
    log, lines = tmp_path / "logs" / "a.log", list[str]()
    script = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    process.run("task", [sys.executable, "-c", script], os.environ, log, lines.append)
    assert lines == ["out\n", "err\n"]
    assert log.read_text(encoding="utf-8") == "out\nerr\n"


def test_failure_brings_the_end_of_the_log(tmp_path: Path) -> None:
    """A failed child is told with its status, the end of its output, and where the rest is."""
    log = tmp_path / "a.log"
    script = "for i in range(1000): print(i)\nraise SystemExit(3)"
    with pytest.raises(CommandFailed) as caught:
        process.run("task", [sys.executable, "-c", script], os.environ, log)
    assert caught.value.status == 3
    assert caught.value.tail[-1] == "999"
    assert len(caught.value.tail) == 400
    assert len(log.read_text(encoding="utf-8").splitlines()) == 1000


def test_missing_program_is_named(tmp_path: Path) -> None:
    """A program that is not there gives a message, not a traceback."""
    with pytest.raises(BootstrapError, match="cannot run /no/such/program"):
        process.run("task", ["/no/such/program"], os.environ, tmp_path / "a.log")


def test_interrupted_child_is_ended_with_its_children(tmp_path: Path) -> None:
    """When the caller is interrupted, a compiler far below is ended as well."""
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run("task", [sys.executable, "-c", script], os.environ, tmp_path / "log", interrupt)
    assert _is_gone(pids[0])


def test_make_does_not_reach_the_build() -> None:
    """ninja must not look for the job server of the make that started all this."""
    environ = {"MAKEFLAGS": "-j4 --jobserver-auth=3,4", "MAKELEVEL": "1", "CMAKE_ARGS": "-DX=1"}
    assert process.without_make(environ) == {"CMAKE_ARGS": "-DX=1"}


def test_other_modules_do_not_reach_the_child() -> None:
    """A PYTHONPATH or PYTHONHOME of the user's is not for the interpreters that are run here."""
    cleaned = process.clean({"PYTHONPATH": "/elsewhere", "PYTHONHOME": "/else", "PATH": "/bin"})
    assert cleaned == {"PATH": "/bin", "PYTHONNOUSERSITE": "1"}


def _is_gone(pid: int) -> bool:
    # Its parent is gone too: whoever adopts it may take a moment to collect it.
    for _ in range(500):
        status = Path(f"/proc/{pid}/stat")
        try:
            if status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False
