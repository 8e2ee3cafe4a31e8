"""Logs follow the configuration while the proxy runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.proxy.harness import refused_port, until
from tests.proxy.processes import Process, process


def events(path: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a log with this event."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line[:1] == "{"]
    return [line for line in lines if line["event"] == name]


def config(path: Path, **settings: Any) -> Path:
    """Write a configuration."""
    text = json.dumps({"upstream_url": f"http://127.0.0.1:{refused_port()}", **settings})
    path.write_text(text, encoding="utf-8")  # JSON is YAML
    return path


async def reloaded(proxy: Process, is_done: Callable[[], bool]) -> None:
    """Have the configuration read again, and wait until it is seen to hold."""
    proxy.process.send_signal(signal.SIGHUP)
    await until(is_done, 10)


async def test_level_form_and_file_change(tmp_path: Path) -> None:
    """A reload changes level, form and file of the log at once, and no line is lost on the way."""
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    file = config(tmp_path / "config.yaml", log_file=str(first))
    flags = ("--config", str(file), "--config-poll-seconds", "0")
    async with process(tmp_path, *flags) as proxy:
        assert await proxy.status("/v1/models") == 502
        config(file, log_file=str(second), log_level="debug", log_format="columns")
        await reloaded(proxy, lambda: bool(events(second, "configuration_reloaded")))
        (line,) = events(second, "configuration_reloaded")
        assert set(line["changed"]) >= {"log_file", "log_format", "log_level"}
        assert not events(second, "configuration_needs_restart")
        assert await proxy.status("/health/live") == 200  # told at debug level
        await until(lambda: bool(events(second, "request")))
        assert await proxy.end() == 0
        console = proxy.log.read_text().splitlines()
    assert [line["path"] for line in events(first, "request")] == ["/v1/models"]
    assert [line["path"] for line in events(second, "request")] == ["/health/live"]
    assert json.loads(console[0])["event"] == "listening"
    assert "| INFO     | openai_proxy | stopped" in console[-1]


async def test_the_access_log_changes(tmp_path: Path) -> None:
    """Which requests get a line is decided anew, too."""
    file = config(tmp_path / "config.yaml", access_log="off")
    async with process(tmp_path, "--config", str(file)) as proxy:
        assert await proxy.status("/v1/models") == 502
        config(file, access_log="errors")
        await reloaded(proxy, lambda: bool(events(proxy.log, "configuration_reloaded")))
        assert await proxy.status("/v1/models") == 502
        await until(lambda: bool(events(proxy.log, "request")))
        assert await proxy.end() == 0
        assert len(events(proxy.log, "request")) == 1


async def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    """A log file that cannot be opened is told, with the setting, and all settings stay."""
    file = config(tmp_path / "config.yaml")
    async with process(tmp_path, "--config", str(file)) as proxy:
        config(file, log_file=str(tmp_path / "none" / "proxy.log"), max_body_bytes=1)
        await reloaded(proxy, lambda: bool(events(proxy.log, "configuration_not_reloaded")))
        (line,) = events(proxy.log, "configuration_not_reloaded")
        assert "--log-file" in line["problems"][0]
        assert not events(proxy.log, "configuration_reloaded")
        assert await proxy.end() == 0
