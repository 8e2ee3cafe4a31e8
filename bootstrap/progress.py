"""How far a long task is: one moving line on a terminal, a line for each tenth elsewhere."""

import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

_NINJA_STEP = re.compile(r"\s*\[(\d+)/(\d+)\]")
_PIP_BYTES = re.compile(r"\s*Progress (\d+) of (\d+)\s*$")
_PIP_REQUIREMENT = re.compile(r"\s*(?:Collecting|Requirement already satisfied:) ([\w.-]+)")


class Progress:
    """Writes one task's progress to a stream; owned by the thread that does the task."""

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._is_terminal = self._stream.isatty()
        self._is_line_open = False
        self._stage = ""
        self._tenth = 0
        self._started = clock()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._close_line()
        self._write(f"{self._label}: {text}\n")

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a stage are behind us."""
        if stage != self._stage:
            self._stage, self._tenth = stage, 0
        if total <= 0:
            return
        text = f"{self._label}: {stage} {100 * done // total:3d} %, {self._elapsed()}"
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{text[:width]}")
            self._is_line_open = True
        elif (tenth := 10 * done // total) > self._tenth:
            self._tenth = tenth
            self._write(text + "\n")

    def finish(self, text: str) -> None:
        """Write the closing line with the time that it all took."""
        self.say(f"{text} ({self._elapsed()})")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._started), 60)
        return f"{minutes}:{seconds:02d} min" if minutes else f"{seconds} s"

    def _close_line(self) -> None:
        if self._is_line_open:
            self._write("\n")
            self._is_line_open = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def ninja_step(line: str) -> tuple[int, int] | None:
    """The `[n/m]` that ninja puts before each of its steps."""
    return _numbers(_NINJA_STEP, line)


def pip_bytes(line: str) -> tuple[int, int] | None:
    """The bytes done and to do that pip's raw progress bar reports for the file at hand."""
    return _numbers(_PIP_BYTES, line)


def pip_requirement(line: str) -> str | None:
    """The name of the requirement that pip turns to in this line."""
    match = _PIP_REQUIREMENT.match(line)
    return match[1] if match else None


def _numbers(pattern: re.Pattern[str], line: str) -> tuple[int, int] | None:
    match = pattern.match(line)
    return (int(match[1]), int(match[2])) if match else None
