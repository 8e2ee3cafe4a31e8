"""A closed-loop load: so many clients, each sends its next prompt when its answer is complete."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from openai_protocol import sse

_WORDS = [
    "river",
    "stone",
    "garden",
    "window",
    "letter",
    "winter",
    "bridge",
    "engine",
    "copper",
    "market",
    "island",
    "forest",
    "candle",
    "harbour",
    "mirror",
    "pencil",
    "silver",
    "thunder",
    "village",
    "yellow",
]
_TIMEOUT = aiohttp.ClientTimeout(total=600)


@dataclass
class Sample:
    """One answer: when its tokens came, in seconds after it was asked for."""

    num_tokens: int = 0
    prompt_tokens: int = 0
    token_times: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Time to first token, in seconds."""
        return self.token_times[0]

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies, in seconds."""
        return [later - earlier for earlier, later in itertools.pairwise(self.token_times)]


@dataclass(frozen=True)
class Run:
    """What one load gave; `seconds` from the first request to the last answer."""

    samples: list[Sample]
    seconds: float


def prompt(number: int, num_words: int = 100) -> str:
    """Return a text of its own for each number: no two share more than a few tokens' prefix."""
    words = [_WORDS[(number * 7 + at * (number % 5 + 1)) % len(_WORDS)] for at in range(num_words)]
    return f"{number}: continue this list of words. " + " ".join(words)


async def run_load(
    base_url: str,
    model: str,
    num_clients: int,
    prompts: list[str],
    max_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Send every prompt once, `num_clients` at a time, streamed and greedy."""
    queue = list(reversed(prompts))
    samples: list[Sample] = []
    # llama-server closes a connection after a stream without saying so: none is used twice
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:

        async def client() -> None:
            while queue:
                body = _body(model, queue.pop(), max_tokens)
                samples.append(await _ask(session, f"{base_url}/chat/completions", body, clock))

        began = clock()
        await asyncio.gather(*(client() for _ in range(num_clients)))
        return Run(samples, clock() - began)


async def _ask(
    session: aiohttp.ClientSession, url: str, body: object, clock: Callable[[], float]
) -> Sample:
    sample = Sample()
    began = clock()
    splitter = sse.EventSplitter()
    try:
        async with session.post(url, json=body) as answer:
            if answer.status != 200:
                sample.error = f"HTTP {answer.status}"
                return sample
            async for chunk in answer.content.iter_any():
                now = clock() - began
                for event in sse.split_events(splitter.feed(chunk)):
                    _take(sample, sse.data_of(event), now)
    except (aiohttp.ClientError, TimeoutError) as error:
        sample.error = type(error).__name__
    if sample.error is None and not sample.token_times:
        sample.error = "no tokens"
    return sample


def _take(sample: Sample, data: bytes | None, now: float) -> None:
    if data is None or data == sse.DONE_PAYLOAD:
        return
    chunk = json.loads(data)
    if "error" in chunk:
        sample.error = str(chunk["error"].get("code"))
    for choice in chunk.get("choices", ()):
        if choice["delta"].get("content"):
            sample.token_times.append(now)
    if usage := chunk.get("usage"):
        sample.num_tokens = usage["completion_tokens"]
        sample.prompt_tokens = usage["prompt_tokens"]


def _body(model: str, text: str, max_tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,  # ours and llama-server's: every answer is as long as the next
        "stream": True,
        "stream_options": {"include_usage": True},
    }
