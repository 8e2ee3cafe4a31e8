"""Fixtures: a stand-in upstream, and a proxy in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.proxy import harness


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "HOST", "UPSTREAM_URL", "BACKEND", "LOG_LEVEL"):
        monkeypatch.delenv(f"OPENAI_PROXY_{name}", raising=False)


@pytest.fixture
async def upstream() -> AsyncIterator[harness.StandIn]:
    async with harness.upstream() as standin:
        yield standin


@pytest.fixture
async def proxy(upstream: harness.StandIn) -> AsyncIterator[harness.Proxy]:
    async with harness.proxy(upstream_url=upstream.url) as running:
        yield running
