"""Child processes: logged, watched line by line, and never left behind."""

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bootstrap.errors import BootstrapError, CommandFailed

# Compilers that run side by side write on for a while after the line that tells the reason.
_TAIL_LINES = 400
_PATIENCE_SECONDS = 5.0
# What make tells its children about itself is not meant for a build that runs further down:
# ninja would look for a job server that is not there.
_MAKE_VARIABLES = frozenset({"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"})
# These would let another Python's modules into ours.
_PYTHON_VARIABLES = frozenset({"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONSAFEPATH"})


def without_make(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what make tells its children about itself."""
    return {name: value for name, value in environ.items() if name not in _MAKE_VARIABLES}


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child that must see neither make's settings nor other modules."""
    kept = {
        name: value
        for name, value in without_make(environ).items()
        if name not in _PYTHON_VARIABLES
    }
    return kept | {"PYTHONNOUSERSITE": "1"}


def run(
    task: str,
    command: Iterable[str | Path],
    environ: Mapping[str, str],
    log: Path,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Run a command to its end with its output in a log; raise CommandFailed if it fails."""
    arguments = [os.fspath(part) for part in command]
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8", errors="replace") as file,
        _start(arguments, environ) as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                file.write(line)
                tail.append(line.rstrip("\n"))
                on_line(line)
            status = child.wait()
        finally:
            _end_group(child)
    if status:
        raise CommandFailed(task, status, list(tail), log)


def _start(arguments: list[str], environ: Mapping[str, str]) -> subprocess.Popen[str]:
    try:
        # A session of its own, so that the compilers that it starts can all be ended with it.
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as error:
        raise BootstrapError(f"cannot run {arguments[0]}: {error.strerror or error}") from error


def _end_group(child: subprocess.Popen[str]) -> None:
    if child.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(_PATIENCE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return
