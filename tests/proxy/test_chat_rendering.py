"""Chats for upstreams that take prompts: rendered apart, so that no template holds up the proxy."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chat_rendering import process
from openai_proxy.__main__ import main
from openai_proxy.config import ConfigError, load
from openai_proxy.lifecycle import Lifecycle
from openai_proxy.server import listen
from tests.proxy import harness
from tests.proxy.harness import CHAT, DEFAULTS, Proxy
from tests.proxy.standin.tgi_server import TgiServer
from tests.proxy.translating import served

HOSTILE = "{{ 9**(9**8) }}"
SLOW = (
    "{% if messages[0].content == 'go' %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}{% endif %}<{{ messages[0].content }}>"
)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let templates and chats have a second."""
    made = functools.partial(process.Template, load_seconds=1.0, render_seconds=1.0, patience=1.0)
    monkeypatch.setattr(process, "Template", made)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """An upstream that takes prompts alone."""
    async with served(TgiServer().app()) as running:
        yield running


async def status(proxy: Proxy, text: str) -> tuple[int, str]:
    body = {"messages": [{"role": "user", "content": text}], "model": "m"}
    async with proxy.http.post(proxy.url + CHAT, json=body) as response:
        return response.status, await response.text()


async def test_a_chat_that_takes_long_holds_up_nobody(url: str) -> None:
    """While one chat is rendered to its deadline, the proxy answers others; then it gets 400."""
    settings = {"upstream_dialect": "tgi", "upstream_chat_template": SLOW}
    async with harness.proxy(upstream_url=url, **settings) as proxy:
        slow = asyncio.create_task(status(proxy, "go"))
        await asyncio.sleep(0.1)
        began = time.perf_counter()
        async with proxy.http.get(proxy.url + "/health/live") as response:
            assert response.status == 200
        assert time.perf_counter() - began < 0.5
        code, text = await slow
        error = json.loads(text)["error"]
        assert (code, error["code"], error["param"]) == (400, "chat_template_failed", "messages")
        code, text = await status(proxy, "hi")
        assert code == 200


async def test_a_template_that_never_compiles_stops_the_start() -> None:
    """The start ends in time, with the upstream's name and what is wrong; so would a signal."""
    settings = load(
        {
            **DEFAULTS,
            "upstream_url": "http://127.0.0.1:1",
            "upstream_dialect": "tgi",
            "upstream_chat_template": HOSTILE,
        }
    )
    lifecycle = Lifecycle(settings, listen("127.0.0.1", 0))

    assert await asyncio.wait_for(lifecycle.run(), 10) == ConfigError.exit_code


def test_a_check_of_the_configuration_compiles_templates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check-config` tells of a template that cannot be used."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "upstream_url: http://127.0.0.1:1\nupstream_dialect: tgi\n"
        "upstream_chat_template: '{% for %}'\n",
        encoding="utf-8",
    )

    assert main(["--config", str(config), "--check-config"]) == 2
    assert "the chat template cannot be compiled" in capsys.readouterr().err
