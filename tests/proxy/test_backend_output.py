"""What a backend writes: lines, levels, secrets, floods."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import psutil
import pytest

from openai_proxy.backends.output import LINES_AT_ONCE, Output
from openai_proxy.backends.process import GuardedProcess, _Reader
from tests.proxy.harness import until

Line = tuple[str, str, dict[str, Any]]


def collected(**arguments: Any) -> tuple[Output, list[Line]]:
    """An output and the lines that it hands on."""
    lines: list[Line] = []
    return Output(lambda *line: lines.append(line), **arguments), lines


def test_plain_lines() -> None:
    """They get a prefix, and the level that they name; JSON lines get neither."""
    output, lines = collected(prefix="[x] ")
    output.feed(
        b"INFO 11-22 10:00 [a.py:1] up\n[2026-11-22 10:00] WARNING x.py: hm\n"
        b"(APIServer pid=1) \x1b[31mERROR\x1b[0m: no\nno INFORMATION here\n"
        b"0.00.012.719 W srv  llama_server: careful\n"
        b'{"event": "e", "level": "warn"}\n{"level": "odd", "message": "m"}\n{"not": json}\n'
    )
    assert lines == [
        ("info", "[x] INFO 11-22 10:00 [a.py:1] up", {}),
        ("warning", "[x] [2026-11-22 10:00] WARNING x.py: hm", {}),
        ("error", "[x] (APIServer pid=1) ERROR: no", {}),
        ("info", "[x] no INFORMATION here", {}),
        ("warning", "[x] 0.00.012.719 W srv  llama_server: careful", {}),
        ("warning", "e", {}),
        ("info", "m", {}),
        ("info", '[x] {"not": json}', {}),
    ]


def test_a_line_that_no_parser_can_take() -> None:
    """JSON nested beyond all measure is passed on as text."""
    output, lines = collected()
    output.feed(b'{"a":' + b"[" * 10_000 + b"\nnext\n")
    assert [level for level, _, _ in lines] == ["info", "info"]


def test_hidden_texts() -> None:
    """They are replaced in text, in fields and in what was said last; the longest first."""
    output, lines = collected(hidden=["secret", "secret-and-more"])
    output.feed(b'it is secret-and-more\n{"event": "e", "error": "secret!"}\n')
    assert lines == [("info", "it is ***", {}), ("info", "e", {"error": "***!"})]
    assert output.last_message == "***!"


def test_a_flood_is_counted() -> None:
    """What comes too fast is dropped and counted, but for the last line; then lines pass again."""
    now = 0.0
    output, lines = collected(clock=lambda: now)
    limit = int(LINES_AT_ONCE)
    output.feed(b"".join(b"line %d\n" % number for number in range(limit + 100)) + b"unfin")
    assert output.is_flooded
    assert len(lines) == limit
    now = 0.5
    output.feed(b"ished\nmore\n")
    assert output.is_flooded
    assert len(lines) == limit
    now += 1.001  # a second's lines must be free again
    output.feed(b"again\n")
    assert not output.is_flooded
    assert lines[limit:] == [("warning", "lines_dropped", {"lines": 102}), ("info", "again", {})]
    output.feed(b"x\n" * limit * 2 + b"last words\n")
    output.end()
    assert lines[-1] == ("info", "last words", {})
    assert output.last_message == "last words"


class Pipe:
    """A pipe that only remembers whether it is read."""

    is_read = True

    def pause_reading(self) -> None:
        """Stop."""
        self.is_read = False

    def resume_reading(self) -> None:
        """Go on."""
        self.is_read = True

    def is_closing(self) -> bool:
        """It never is."""
        return False


async def test_a_flood_is_read_slowly() -> None:
    """What is not passed on must not take the event loop's time either: it waits in the pipe."""
    output, _ = collected()
    pipe, reader = Pipe(), _Reader(output)
    reader.connection_made(pipe)  # type: ignore[arg-type]
    reader.data_received(b"a line\n")
    assert pipe.is_read
    reader.data_received(b"x" * 65536)
    assert not pipe.is_read
    await until(lambda: pipe.is_read, 1)


def test_another_process_begins_anew() -> None:
    """What one process said is not held against the next."""
    output, _ = collected()
    output.feed(b"address already in use\n")
    output.begin()
    assert output.last_message == "nothing"


async def test_a_start_that_fails_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process can be started, its pipes are closed again."""

    async def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "try again")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)
    output, _ = collected()
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match="try again"):
        await GuardedProcess.start(["true"], output, {})
    assert psutil.Process().num_fds() == before
