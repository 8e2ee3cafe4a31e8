"""The predictor's log lines: they come out, and where they cannot, nobody waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Logs more than a pipe holds, then ends.
_CHATTER = """
import logging, structlog
from kserve_llamacpp.logging import configure_logging
configure_logging("info", "json")
for number in range(2000):
    structlog.get_logger("access").info("request", number=number)
logging.getLogger("library").warning("last")
"""

# Meets exceptions whose texts quote a prompt, of its own and asyncio's.
_FAILURES = """
import asyncio, logging, structlog
from kserve_llamacpp.logging import configure_logging
configure_logging("info", "json")
async def fail():
    raise ValueError("my secret prompt")
async def main():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
asyncio.run(main())
try:
    asyncio.run(fail())
except ValueError as error:
    structlog.get_logger("server").exception("handled")
    structlog.get_logger("server").error("named", exc_info=error)
    logging.getLogger("uvicorn.error").error("library", exc_info=error)
"""


def _run(out: int) -> int:
    process = subprocess.run([sys.executable, "-c", _CHATTER], stderr=out, timeout=30, check=False)
    return process.returncode


@pytest.mark.parametrize("what", ["full disk", "reader left", "reader sleeps"])
def test_lines_that_nobody_takes(what: str) -> None:
    """A full disk, a reader that left and one that sleeps neither stop the process nor fail it."""
    reader, writer = os.pipe()
    if what == "full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    elif what == "reader left":
        os.close(reader)
    try:
        assert _run(writer) == 0
    finally:
        os.close(writer)
        if what != "reader left":
            os.close(reader)


def test_lines_come_out() -> None:
    """All lines are there at the end, in their order, libraries' too."""
    command = [sys.executable, "-c", _CHATTER]
    out = subprocess.run(command, stderr=subprocess.PIPE, timeout=30, check=True).stderr
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["number"] for line in lines[:-1]] == list(range(2000))
    assert (lines[-1]["event"], lines[-1]["logger"]) == ("last", "library")


def test_an_exception_is_told_without_its_text() -> None:
    """What failed and where is logged, but not what the exception says: it may quote a prompt."""
    command = [sys.executable, "-c", _FAILURES]
    out = subprocess.run(command, stderr=subprocess.PIPE, timeout=30, check=True).stderr
    lines = [json.loads(line) for line in out.splitlines()]

    assert b"secret" not in out
    assert [line["event"] for line in lines[1:]] == ["handled", "named", "library"]
    assert "never retrieved" in lines[0]["event"]
    assert {line["error_type"] for line in lines} == {"ValueError"}
    assert all("in fail" in line["stack"] for line in lines)


# Logs what JSON has no form for, and what cannot be shown at all.
_ODD = """
import structlog
from kserve_llamacpp.logging import configure_logging
configure_logging("info", "json")
class Bad:
    def __repr__(self):
        raise ValueError("my secret prompt")
log = structlog.get_logger("server")
log.info("half", text="\\ud800", number=float("nan"), other={1, 2}, keys={(1, 2): 3})
log.info("half", text="\\ud800")
log.info("bad", value=Bad())
log.debug("not shown")
log.info("last", items=[b"bytes", object])
"""


def test_what_cannot_be_rendered_fails_nobody() -> None:
    """Odd values come out in some form, or a line says that there was one."""
    command = [sys.executable, "-c", _ODD]
    out = subprocess.run(command, stderr=subprocess.PIPE, timeout=30, check=True).stderr
    lines = [json.loads(line) for line in out.splitlines()]

    assert b"secret" not in out
    assert [line["event"] for line in lines[-3:]] == ["half", "log_line_failed", "last"]
    assert {line["logger"] for line in lines} == {"server"}
