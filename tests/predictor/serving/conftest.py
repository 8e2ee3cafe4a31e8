"""A predictor with the real model, shared by the tests that do it no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.processes import Predictor

SHARED_PROMPT = "You sell tickets for trains in Lower Saxony, and you never ask for names."


@pytest.fixture(scope="session")
def predictor(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """A running predictor; whoever kills or drains one starts one of their own."""
    prompt = tmp_path_factory.mktemp("shared") / "tickets.txt"
    prompt.write_text(f"{SHARED_PROMPT}\n")
    with Predictor(model_path, f"--shared_prompts={prompt}") as server:
        yield server.ready()


@pytest.fixture
async def client(predictor: Predictor) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, without its retries."""
    async with openai.AsyncOpenAI(
        base_url=f"{predictor.url}/v1", api_key="unused", max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def http(predictor: Predictor) -> AsyncIterator[httpx2.AsyncClient]:
    """Bare HTTP, for what the official client does not say."""
    async with httpx2.AsyncClient(base_url=predictor.url, timeout=60) as client:
        yield client
