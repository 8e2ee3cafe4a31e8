"""Fixtures: a stand-in upstream, and a proxy in front of it.

And Hypothesis without a deadline: the machines that run these tests are shared and slow.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from openai_proxy.config import ENV_PREFIX
from openai_proxy.config.aliases import BY_NAME
from openai_proxy.config.files import ENVIRONMENT_VARIABLE
from tests.proxy import harness
from tests.proxy.programs import Programs

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX) or name in BY_NAME or name == ENVIRONMENT_VARIABLE:
            monkeypatch.delenv(name)


@pytest.fixture
async def upstream() -> AsyncIterator[harness.StandIn]:
    async with harness.upstream() as standin:
        yield standin


@pytest.fixture
async def proxy(upstream: harness.StandIn) -> AsyncIterator[harness.Proxy]:
    async with harness.proxy(upstream_url=upstream.url) as running:
        yield running


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    """Stand-ins for the programs of all kinds of backends."""
    return Programs(tmp_path)
