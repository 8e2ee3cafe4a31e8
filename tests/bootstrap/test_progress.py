"""Progress on a terminal and in a log, and what it is read from."""

import io

import pytest

from bootstrap.progress import Progress, ninja_step, pip_bytes, pip_requirement


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("[1/135] Building C object", (1, 135)),
        ("  [34/135] /usr/bin/cmake -E cmake_symlink_library", (34, 135)),
        ("compiling [1/2]", None),
        ("[ 12%] Building", None),
        ("-- Configuring done", None),
        ("", None),
    ],
)
def test_ninja_steps_are_read(line: str, step: tuple[int, int] | None) -> None:
    """Only a line that begins with ninja's counter is a step."""
    assert ninja_step(line) == step


def test_pip_bytes_are_read() -> None:
    """pip's raw progress bar gives bytes done and to do."""
    assert pip_bytes("Progress 1024 of 4096\n") == (1024, 4096)
    assert pip_bytes("Progress is made") is None


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Collecting grpcio-tools==1.81.1 (from -r predictor.txt (line 3))", "grpcio-tools"),
        ("Requirement already satisfied: numpy==2.4.6 in ./lib", "numpy"),
        ("  Downloading numpy-2.4.6.whl (16 MB)", None),
    ],
)
def test_pip_requirements_are_read(line: str, name: str | None) -> None:
    """A requirement counts whether pip fetches it or has it."""
    assert pip_requirement(line) == name


def test_log_gets_a_line_for_each_tenth() -> None:
    """Outside a terminal a hundred steps give ten lines, the last with 100 %."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress("task", stream, clock)
    for step in range(1, 101):
        clock.now = float(step)
        progress.update("compiling", step, 100)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "task: compiling  10 %, 10 s"
    assert lines[-1] == "task: compiling 100 %, 1:40 min"


def test_new_stage_starts_over() -> None:
    """A second stage is reported from its own beginning."""
    stream = io.StringIO()
    progress = Progress("task", stream, Clock())
    progress.update("fetching", 9, 10)
    progress.update("compiling", 1, 10)
    assert "compiling  10 %" in stream.getvalue()


def test_terminal_gets_one_line_that_moves() -> None:
    """On a terminal updates overwrite one another, and what follows has a line of its own."""
    stream = Terminal()
    progress = Progress("task", stream, Clock())
    progress.update("compiling", 1, 3)
    progress.update("compiling", 2, 3)
    progress.say("done")
    written = stream.getvalue()
    assert written.count("\n") == 2
    assert written.count("\r\x1b[K") == 2
    assert written.endswith("66 %, 0 s\ntask: done\n")


def test_unknown_total_is_not_shown() -> None:
    """A server that does not say how much is to come breaks nothing."""
    stream = io.StringIO()
    Progress("task", stream, Clock()).update("fetching", 5, 0)
    assert stream.getvalue() == ""
