"""Tests run on the event loop that both servers run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Name the event loop that servers run on, for pytest-asyncio."""
    return {"uvloop": uvloop.new_event_loop}
