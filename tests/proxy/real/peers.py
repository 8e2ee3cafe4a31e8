"""Real servers of others: where their programs are, how one is started, a proxy before it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Server
from tests.proxy import harness
from tests.proxy.processes import ROOT, answering

FOLDER = Path(os.environ.get("PEERS") or ROOT / "build" / "peers")
START_SECONDS = 100.0


def program(name: str) -> str:
    """A program's file, "" where there is none: as its variable says, as built, on the PATH.

    The variable of `llama-server` is LLAMA_SERVER.
    """
    named = os.environ.get(name.upper().replace("-", "_"))
    return named or shutil.which(name, path=FOLDER / "bin") or shutil.which(name) or ""


def needs(name: str, package: str | None = None) -> pytest.MarkDecorator:
    """Skip a test where a program is missing, and say how to get it."""
    build = f"python -m tests.proxy.real.build {package or name}"
    return pytest.mark.skipif(not program(name), reason=f"no {name}: `{build}` builds it")


@contextmanager
def running(
    *command: str, port: int, ready: str, env: dict[str, str] | None = None
) -> Iterator[str]:
    """Run a server until the block ends; gives its URL as soon as `ready` answers there."""
    url = f"http://127.0.0.1:{port}"
    with Server([*command], env=env, new_session=True) as server:
        asyncio.run(_answers(server, url + ready))
        yield url


async def _answers(server: Server, url: str) -> None:
    def is_there() -> bool:
        assert server.process.poll() is None, "".join(server.text[-40:])
        return answering(url)

    await harness.until(is_there, START_SECONDS, every=0.2)


def environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's environment with these variables."""
    return {**os.environ, **variables}


@asynccontextmanager
async def before(url: str, dialect: str, **settings: Any) -> AsyncIterator[harness.Proxy]:
    """Run a proxy before a real server."""
    async with harness.proxy(upstream_url=url, upstream_dialect=dialect, **settings) as proxy:
        yield proxy


def content(answer: Any) -> str:
    """The text of a whole answer."""
    choice = answer["choices"][0]
    found: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return found


def reason(answer: Any) -> str:
    """Why a whole answer ends."""
    found: str = answer["choices"][0]["finish_reason"]
    return found


def error(answer: Any) -> tuple[str, str | None]:
    """The code and the field of an error."""
    return answer["error"]["code"], answer["error"]["param"]
