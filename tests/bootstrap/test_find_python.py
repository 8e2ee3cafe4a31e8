"""Which Python the Makefile takes."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bootstrap" / "find-python"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    return directory


def program(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (directory / name).chmod(0o755)


def find(directory: Path, chosen: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(SCRIPT)],
        env={"PATH": str(directory), "PYTHON": chosen},
        capture_output=True,
        text=True,
        check=False,
    )


def test_python_that_fails_is_passed_over(programs: Path) -> None:
    """A shim that is there but cannot run its Python is not taken."""
    program(programs, "python3", "exit 127")
    program(programs, "python3.12", f'exec {sys.executable} "$@"')
    assert find(programs).stdout.strip() == str(programs / "python3.12")


def test_none_is_told(programs: Path) -> None:
    """Without any the message says which are good and how to choose one."""
    answer = find(programs)
    assert answer.returncode == 1
    assert "3.11, 3.12 or 3.13" in answer.stderr
    assert "make PYTHON=" in answer.stderr


def test_chosen_python_is_not_replaced(programs: Path) -> None:
    """A PYTHON that does not run is an error, also when another would do."""
    program(programs, "python3", f'exec {sys.executable} "$@"')
    program(programs, "python2", "exit 1")
    answer = find(programs, "python2")
    assert answer.returncode == 1
    assert "PYTHON=python2 does not run" in answer.stderr


def test_chosen_python_is_taken(programs: Path) -> None:
    """A PYTHON that runs wins over the first on PATH."""
    program(programs, "python3", f'exec {sys.executable} "$@"')
    assert find(programs, sys.executable).stdout.strip() == sys.executable
