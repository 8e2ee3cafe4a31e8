"""Reading the configuration again: when, what is handed on, and that an error changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from openai_proxy.config import ConfigError, Flags, Loaded, Settings, load_all
from openai_proxy.config.reload import NEEDS_RESTART, Reloader, needs_restart
from tests.proxy.harness import until

ENVIRON = {"OPENAI_PROXY_UPSTREAM_URL": "http://h"}


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    path.unlink()


class Proxy:
    """Takes settings as a proxy does, and remembers them; it may refuse them."""

    def __init__(self, config: Path, **environ: str) -> None:
        self.config = config
        self.environ = {**ENVIRON, **environ}
        self.taken: list[Settings] = []
        self.changed: list[frozenset[str]] = []
        self.refusal: Exception | None = None
        self.reloader = Reloader(self.read(), self.read, self.apply)

    def read(self) -> Loaded:
        return load_all(Flags(config=str(self.config)), self.environ)

    async def apply(self, settings: Settings, changed: frozenset[str]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.taken.append(settings)
        self.changed.append(changed)

    async def looks(self, times: int = 2) -> None:
        for _ in range(times):
            await self.reloader.look()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    write(path, "grace_seconds: 1\n")
    return path


async def test_nothing_has_changed(config: Path) -> None:
    """A file that stays the same is not read again."""
    proxy = Proxy(config)
    await proxy.looks(5)
    assert proxy.taken == []


async def test_a_changed_file(config: Path) -> None:
    """A changed file's settings are handed on once, with the names of what has changed."""
    proxy = Proxy(config)
    write(config, "grace_seconds: 2\nmax_body_bytes: 9\n")
    await proxy.looks(5)
    (settings,) = proxy.taken
    assert (settings.grace_seconds, settings.max_body_bytes) == (2, 9)
    assert proxy.changed == [{"grace_seconds", "max_body_bytes"}]
    assert proxy.reloader.settings is settings


async def test_a_change_between_start_and_first_look(config: Path) -> None:
    """A file that changes after it was read, and before the reloader is there, is read again."""
    loaded = load_all(Flags(config=str(config)), ENVIRON)
    write(config, "grace_seconds: 22\n")
    proxy = Proxy(config)
    reloader = Reloader(loaded, proxy.read, proxy.apply)
    for _ in range(2):
        await reloader.look()
    assert [settings.grace_seconds for settings in proxy.taken] == [22]


async def test_a_file_that_is_written_in_parts(config: Path) -> None:
    """A file is read when it has been the same for two looks."""
    proxy = Proxy(config)
    text = "grace_seconds: 1\n"
    for part in ("# 1\n", "# 2\n", "max_body_bytes: 9\n"):
        text += part
        write(config, text)
        await proxy.reloader.look()
    assert proxy.taken == []
    await proxy.reloader.look()
    assert [settings.max_body_bytes for settings in proxy.taken] == [9]


async def test_a_file_of_the_environment_appears(config: Path) -> None:
    """RUN_ENV's file is read when it comes, and its layer goes with it."""
    proxy = Proxy(config, RUN_ENV="test")
    beside = config.with_name("config.test.yaml")
    write(beside, "grace_seconds: 2\n")
    await proxy.looks()
    remove(beside)
    await proxy.looks()
    assert [settings.grace_seconds for settings in proxy.taken] == [2, 1]


def config_map(folder: Path) -> None:
    """Lay out a ConfigMap's volume and its next version: files of the same size and time."""
    for n in (1, 2):
        (folder / f"..{n}").mkdir()
        write(folder / f"..{n}" / "config.yaml", f"grace_seconds: {n}\n")
        os.utime(folder / f"..{n}" / "config.yaml", (0, 0))
    (folder / "..data").symlink_to("..1")
    (folder / "config.yaml").symlink_to("..data/config.yaml")


def swap(folder: Path) -> None:
    """Bring the next version, as the kubelet does it."""
    (folder / "..tmp").symlink_to("..2")
    (folder / "..tmp").rename(folder / "..data")


async def test_a_config_map(tmp_path: Path) -> None:
    """A ConfigMap's files, which are swapped by a link to another folder, are seen to change."""
    config_map(tmp_path)
    proxy = Proxy(tmp_path / "config.yaml")
    swap(tmp_path)
    await proxy.looks()
    assert [settings.grace_seconds for settings in proxy.taken] == [2]


@pytest.mark.parametrize("text", ["grace_seconds: soon", "grace: 1", "a: [", None])
async def test_bad_files_change_nothing(config: Path, text: str | None) -> None:
    """What is wrong is logged once, with its place, and the settings stay."""
    proxy = Proxy(config)
    before = proxy.reloader.settings
    if text is None:
        remove(config)
    else:
        write(config, text)
    with capture_logs() as logs:
        await proxy.looks(5)
    (line,) = logs
    assert line["event"] == "configuration_not_reloaded"
    assert str(config) in line["problems"][0]
    assert proxy.taken == []
    assert proxy.reloader.settings is before
    write(config, "grace_seconds: 2\n")
    await proxy.looks()
    assert [settings.grace_seconds for settings in proxy.taken] == [2]


@pytest.mark.parametrize("refusal", [ConfigError("no such certificate"), RuntimeError("hunter2")])
async def test_refused_settings(config: Path, refusal: Exception) -> None:
    """Settings that the proxy cannot take are logged, and the old ones stay."""
    proxy = Proxy(config)
    proxy.refusal = refusal
    before = proxy.reloader.settings
    write(config, "grace_seconds: 2\n")
    with capture_logs() as logs:
        await proxy.looks(5)
    assert [line["event"] for line in logs] == ["configuration_not_reloaded"]
    assert proxy.reloader.settings is before


async def test_settings_that_need_a_restart(config: Path) -> None:
    """What needs a restart keeps its value and is told; all else is taken."""
    proxy = Proxy(config)
    write(config, "grace_seconds: 2\nport: 9\nbackend_port: 10\n")
    with capture_logs() as logs:
        await proxy.looks()
    (settings,) = proxy.taken
    assert (settings.grace_seconds, settings.port, settings.backend_port) == (2, 8000, 0)
    (told,) = [line for line in logs if line["event"] == "configuration_needs_restart"]
    assert told["settings"] == ["backend_port", "port"]


async def test_settings_that_do_not_go_with_the_old_ones(tmp_path: Path) -> None:
    """Where new settings are good only together with those that wait, none are taken."""
    config = tmp_path / "config.yaml"
    write(config, "backend: llamacpp\nmodel_path: m\n")
    proxy = Proxy(config, OPENAI_PROXY_UPSTREAM_URL="")
    write(config, "upstream_url: http://h\n")
    with capture_logs() as logs:
        await proxy.looks()
    (line,) = logs
    assert line["problems"][0].startswith("needs a restart, for backend, model_path changed: ")
    assert proxy.taken == []


def test_what_needs_a_restart() -> None:
    """Names and prefixes in the list mean what they say."""
    assert needs_restart("port")
    assert needs_restart("backend_port")
    assert not needs_restart("request_timeout_seconds")
    assert not needs_restart("max_upstream_connections")
    assert not needs_restart("log_level")
    assert sorted(NEEDS_RESTART) == list(NEEDS_RESTART)


@asynccontextmanager
async def running(proxy: Proxy) -> AsyncIterator[None]:
    task = asyncio.create_task(proxy.reloader.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_request(config: Path) -> None:
    """When asked, settings are handed on at once, changed or not, and without looking at files."""
    write(config, "config_poll_seconds: 0\n")
    proxy = Proxy(config)
    async with running(proxy):
        proxy.reloader.request()
        await until(lambda: len(proxy.taken) == 1)
        assert proxy.changed == [frozenset()]
        write(config, "config_poll_seconds: 0\ngrace_seconds: 3\n")
        proxy.reloader.request()
        await until(lambda: len(proxy.taken) == 2)
        assert proxy.taken[1].grace_seconds == 3


async def test_polling(config: Path) -> None:
    """A running reloader sees a changed file by itself, again and again."""
    write(config, "config_poll_seconds: 0.01\n")
    proxy = Proxy(config)
    async with running(proxy):
        for n in (2, 3):
            write(config, f"config_poll_seconds: 0.01\ngrace_seconds: {n}\n")
            await until(lambda n=n: len(proxy.taken) == n - 1)
    assert [settings.grace_seconds for settings in proxy.taken] == [2, 3]
