"""Logs: one form for all lines, no secrets, to stderr and to a file, and nobody waits for them."""

from __future__ import annotations

import asyncio
import json
import logging as stdlib_logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import ClientSession

from openai_proxy import logging
from openai_proxy.config import ConfigError, load
from openai_proxy.config.logging import LoggingSettings
from openai_proxy.exchange import LOG_FIELDS
from openai_proxy.log_form import MAX_LINE, as_columns, as_json, form_of
from tests.proxy.harness import CHAT, MESSAGES, StandIn, refused_port, until
from tests.proxy.log_lines import logged
from tests.proxy.processes import environment, process, run

URL = {"upstream_url": "http://127.0.0.1:1"}


def test_logs_tell_where_and_not_what() -> None:
    """Of an exception the log has its type and stack, never its text; stdlib's logs, too."""
    text = "secret prompt"
    with logged() as lines:
        for write in (structlog.get_logger().exception, stdlib_logging.getLogger("lib").exception):
            try:
                raise ValueError(text)
            except ValueError:
                write("it failed")
        found = lines.events()
    assert [line["error_type"] for line in found] == ["ValueError", "ValueError"]
    assert all("test_logging.py" in line["stack"] for line in found)
    assert "secret" not in lines.getvalue()


async def test_asyncio_does_not_tell_what_either() -> None:
    """What asyncio says of an exception that nobody took has its type, not its text."""
    text = "secret prompt"
    with logged() as lines:

        async def fail() -> None:
            raise ValueError(text)

        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        await until(lambda: bool(lines.events()))
        (found,) = lines.events()
    assert (found["logger"], found["error_type"]) == ("asyncio", "ValueError")
    assert "secret" not in lines.getvalue()


def test_logs_go_through_one_form() -> None:
    """Lines of libraries have the same fields as ours, and the request's id."""
    with logged() as lines:
        LOG_FIELDS.set({"request_id": "r1"})
        stdlib_logging.getLogger("lib").warning("from %s", "a library")
        structlog.get_logger("openai_proxy.part").warning("ours", n=1)
        theirs, ours = lines.events()
    assert theirs["event"] == "from a library"
    assert (theirs["logger"], ours["logger"]) == ("lib", "openai_proxy.part")
    assert (theirs["level"], theirs["request_id"]) == (ours["level"], ours["request_id"])
    assert list(ours)[:4] == list(theirs)[:4] == ["timestamp", "level", "event", "logger"]


def test_a_library_s_bad_line_is_no_failure() -> None:
    """A line whose arguments do not fit is told as such, without its arguments."""
    with logged() as lines:
        stdlib_logging.getLogger("lib").warning("%d tokens", "secret prompt")
        (found,) = lines.events()
    assert (found["event"], found["logger"]) == ("log_line_failed", "lib")
    assert "secret" not in lines.getvalue()


def test_columns() -> None:
    """The form of the Deterministic Inference Server: time, level, module, message."""
    with logged(log_format="columns") as lines:
        log = structlog.get_logger("openai_proxy.part")
        log.info("listening", host="0.0.0.0", port=8000, text="two words", none=None)  # noqa: S104
        stdlib_logging.getLogger("lib").warning("from a library")
        try:
            raise ValueError
        except ValueError:
            log.exception("it failed")
        ours, theirs, *failed = lines.text().splitlines()
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| (.*)"
    assert re.fullmatch(pattern, ours)[1] == (  # type: ignore[index]
        'INFO     | openai_proxy.part | listening host=0.0.0.0 port=8000 text="two words" none=null'
    )
    assert re.fullmatch(pattern, theirs)[1] == "WARNING  | lib | from a library"  # type: ignore[index]
    assert failed[0].endswith("| ERROR    | openai_proxy.part | it failed error_type=ValueError")
    assert "test_logging.py" in failed[1]


@pytest.mark.parametrize("name", ["json", "columns", "pretty"])
def test_an_event_is_one_line(name: str) -> None:
    """Line ends and escape sequences in an event or a field cannot begin a line of their own."""
    line = form_of(name)({"event": "a\nb", "level": "info", "text": "c\nd\x1b[2J", "x": "\r"})
    assert line.count("\n") == 1
    assert line.endswith("\n")
    if name != "pretty":
        assert "\x1b" not in line


@pytest.mark.parametrize("name", ["columns", "pretty"])
def test_a_stack_stands_below_its_line(name: str) -> None:
    """It has lines of its own, without escape sequences: a backend may have written it."""
    event = {"event": "e", "level": "error", "stack": "  File x\n    y()\x1b[2J\n"}
    _, *below = form_of(name)(event).splitlines()
    assert below == ["  File x", "    y() [2J"]


def test_forms_leave_the_event_alone() -> None:
    """The same event can be written in one form after the other."""
    event = {"timestamp": "t", "event": "e", "level": "info", "logger": "l", "stack": "s", "x": 1}
    before = dict(event)
    for name in ("json", "columns", "pretty"):
        form_of(name)(event)
        assert event == before


def test_a_line_that_is_too_long_is_cut_off() -> None:
    """JSON stays JSON."""
    event = {"timestamp": "t", "level": "info", "event": "long", "text": "x" * 2 * MAX_LINE}
    assert json.loads(as_json(event))["event"] == "long"
    assert len(as_json(event)) < MAX_LINE
    assert len(as_columns(event)) <= MAX_LINE + 1


@pytest.mark.parametrize(
    ("given", "level"),
    [("INFO", "info"), ("Debug", "debug"), ("WARN", "warning"), ("CRITICAL", "error")],
)
def test_levels_of_other_programs(given: str, level: str) -> None:
    """Levels may be in upper case, and as other programs call them."""
    assert load({**URL, "log_level": given}).log_level == level


def test_file_and_console_have_forms_of_their_own(tmp_path: Path) -> None:
    """The same lines go to both."""
    path = tmp_path / "proxy.log"
    with logged(log_format="columns", log_file=path) as lines:
        structlog.get_logger().info("one", n=1)
        stdlib_logging.getLogger("lib").warning("two")
        text = lines.text()
    assert "| openai_proxy | one n=1\n" in text
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["one", "two"]


def test_a_full_disk_is_told_on_the_console() -> None:
    """The file's failure is told once, and the console goes on."""
    with logged(log_file="/dev/full") as lines:
        for number in range(3):
            structlog.get_logger().info("line", n=number)
            assert lines.logs.flush(5)
        assert len(lines.events("line")) == 3
        (failure,) = lines.events("log_file_failed")
        assert failure["reason"] == "No space left on device"
        assert lines.logs.num_lost == 3


def test_configured_again(tmp_path: Path) -> None:
    """Other settings replace the first as a whole, or, where they cannot be used, not at all."""
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    log = structlog.get_logger()
    with logged(log_file=first) as lines:
        log.info("one")
        with pytest.raises(logging.LogFileError):
            logging.configure(LoggingSettings(log_file=tmp_path, log_level="error"), lines)
        log.info("two")
        lines.logs = logging.configure(LoggingSettings(log_file=second, log_level="error"), lines)
        log.info("not told")
        log.error("three")
        lines.text()
    assert [json.loads(line)["event"] for line in first.read_text().splitlines()] == ["one", "two"]
    assert [json.loads(line)["event"] for line in second.read_text().splitlines()] == ["three"]


@pytest.mark.parametrize("path", ["{0}", "{0}/none/proxy.log", "/proc/none.log"])
async def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path, path: str) -> None:
    """One line names the file, the reason and the setting; nothing else is begun."""
    path = path.format(tmp_path)
    code, _, err = await run("--without-upstream", "--log-file", path)
    assert code == 2
    assert err.count("\n") == 1
    assert path in err
    assert "--log-file" in err


def test_a_directory_without_room_for_backups_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that could not be rotated is refused where rotation is on."""
    path = tmp_path / "proxy.log"
    path.touch()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigError, match="--log-file-max-bytes 0"):
        logging.configure(LoggingSettings(log_file=path))


async def test_the_process_logs_to_both(tmp_path: Path, upstream: StandIn) -> None:
    """Both have the whole story, to the last line, when the process ends."""
    path = tmp_path / "proxy.json"
    flags = ("--upstream-url", upstream.url, "--log-file", str(path), "--log-format", "columns")
    async with process(tmp_path, *flags) as proxy:
        assert await proxy.end() == 0
        console = proxy.log.read_text()
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert (events[0], events[-1]) == ("listening", "stopped")
    assert console.splitlines()[-1].endswith("| INFO     | openai_proxy | stopped")


async def test_an_end_at_once_is_logged(tmp_path: Path, upstream: StandIn) -> None:
    """Also the second Ctrl-C, which waits for nothing, leaves its line."""
    path = tmp_path / "proxy.json"
    flags = ("--upstream-url", upstream.url, "--drain-delay-seconds", "60", "--log-file", str(path))
    async with process(tmp_path, *flags, wait_for="/health/ready") as proxy:
        proxy.process.send_signal(signal.SIGINT)
        await until(lambda: "draining" in path.read_text())
        assert await proxy.end(signal.SIGINT, 5) == 128 + signal.SIGINT
    assert json.loads(path.read_text().splitlines()[-1])["event"] == "second_signal"


async def test_logrotate_with_a_running_proxy(tmp_path: Path, upstream: StandIn) -> None:
    """A file that is moved away while the proxy runs is begun anew."""
    path = tmp_path / "proxy.json"
    flags = ("--upstream-url", upstream.url, "--log-file", str(path), "--log-level", "DEBUG")
    async with process(tmp_path, *flags, wait_for="/health/ready") as proxy:
        path.rename(tmp_path / "moved.json")
        assert await proxy.answers("/health/live")
        await until(path.exists)
        await until(lambda: "/health/live" in path.read_text())


async def test_nobody_reads_stderr(upstream: StandIn) -> None:
    """A pipe that is full holds up neither requests nor the end."""
    port = refused_port()
    reading, writing = os.pipe()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "openai_proxy", "--host", "127.0.0.1", "--port", str(port)),
        *("--upstream-url", upstream.url, "--drain-delay-seconds", "0", "--quiet"),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=writing, env=environment(),
    )  # fmt: skip
    os.close(writing)
    try:
        async with ClientSession() as http:

            async def status(path: str, **kwargs: Any) -> int:
                async with http.request(url=f"http://127.0.0.1:{port}{path}", **kwargs) as response:
                    await response.read()
                    return response.status

            async def is_up() -> bool:
                try:
                    return await status("/health/ready", method="GET") == 200
                except OSError:
                    return False

            await until(is_up, 20)
            for _ in range(600):  # a pipe holds 64 KiB
                body = {"messages": MESSAGES, "model": "m" * 128}
                assert await status(CHAT, method="POST", json=body) == 200
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 10) == 0
    finally:
        if child.returncode is None:
            child.kill()
        os.close(reading)
