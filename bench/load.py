"""Asks one server, and notes when each token came.

The load generator shares the machine with what it measures: an event with text is counted, not
parsed; only the few others (usage, errors, the end) are.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp

from bench.servers import Target

_TIMEOUT = aiohttp.ClientTimeout(total=300)
_TEXT = re.compile(rb'"content":\s*"(?!")')
_WORTH_PARSING = re.compile(rb'"(?:usage|error)":\s*[{"]|"finish_reason":\s*"')
_EVENT_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True)
class Request:
    """What is asked for; a tenant goes into the header `X-Tenant`."""

    messages: list[dict[str, str]]
    max_tokens: int
    tenant: str | None = None

    @classmethod
    def of(cls, text: str, max_tokens: int, tenant: str | None = None) -> Request:
        """Ask with one message of the user."""
        return cls([{"role": "user", "content": text}], max_tokens, tenant)


@dataclass
class Sample:
    """One answer; times are seconds of the client's clock, counts are tokens."""

    began: float = 0.0
    token_times: list[float] = field(default_factory=list)
    num_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    text: str = ""
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Time to first token, in seconds."""
        return self.token_times[0] - self.began

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies, in seconds."""
        return [later - earlier for earlier, later in itertools.pairwise(self.token_times)]


class Client:
    """Sends requests to one server; owner: one scenario's round."""

    def __init__(self, target: Target, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._target = target

    async def __aenter__(self) -> Client:
        # llama-server closes a connection after a stream without saying so: none is used twice
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def ask(self, request: Request, sample: Sample | None = None) -> Sample:
        """Ask, streamed and greedy; `sample` may be watched while it fills."""
        sample = sample or Sample()
        sample.began = self.clock()
        headers = {"X-Tenant": request.tenant} if request.tenant else {}
        url = f"{self._target.base_url}/chat/completions"
        stream = _Stream(sample, request.max_tokens)
        try:
            async with self._session.post(url, json=self._body(request), headers=headers) as answer:
                if answer.status != 200:
                    sample.error = f"HTTP {answer.status}"
                    return sample
                async for data in answer.content.iter_any():
                    stream.feed(data, self.clock())
            stream.finish()
        except (aiohttp.ClientError, TimeoutError, LookupError, ValueError) as error:
            sample.error = type(error).__name__
        return sample

    async def ask_all(self, requests: Sequence[Request], num_clients: int) -> list[Sample]:
        """Ask in a closed loop: each client sends the next when its answer is complete."""
        queue = iter(requests)
        samples: list[Sample] = []

        async def client() -> None:
            for request in queue:
                sample = await self.ask(request)
                samples.append(sample)

        await asyncio.gather(*(client() for _ in range(num_clients)))
        return samples

    def _body(self, request: Request) -> dict[str, object]:
        return {
            "model": self._target.model,
            "messages": request.messages,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._target.endless,
        }


class _Stream:
    """Reads one answer's events into its sample."""

    def __init__(self, sample: Sample, max_tokens: int) -> None:
        self._sample = sample
        self._max_tokens = max_tokens
        self._pending = b""
        self._events: list[bytes] = []
        self._finish_reason: str | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Take what came; raises ValueError when it is not what OpenAI's streams look like."""
        *events, self._pending = _EVENT_END.split(self._pending + data)
        for event in events:
            if _TEXT.search(event):
                self._sample.token_times.append(now)
                self._events.append(event)
            if _WORTH_PARSING.search(event):
                self._take(event)

    def finish(self) -> None:
        """Count the tokens and put the text together; an answer without tokens is an error."""
        sample = self._sample
        if not sample.num_tokens:  # the example server has no usage in its streams
            is_whole = self._finish_reason == "length"
            sample.num_tokens = self._max_tokens if is_whole else len(sample.token_times)
        for chunk in map(_json_of, self._events):
            sample.text += chunk["choices"][0]["delta"]["content"]
        if sample.error is None and not sample.token_times:
            sample.error = "no tokens"
        elif sample.error is None and self._finish_reason is None:
            sample.error = "no end"

    def _take(self, event: bytes) -> None:
        chunk = _json_of(event)
        if error := chunk.get("error"):
            self._sample.error = str(error.get("code") or error.get("type") or "error")
        for choice in chunk.get("choices", ()):
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        if usage := chunk.get("usage"):
            self._sample.num_tokens = usage["completion_tokens"]
            self._sample.prompt_tokens = usage["prompt_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            self._sample.cached_tokens = details.get("cached_tokens") or 0


def _json_of(event: bytes) -> dict[str, Any]:
    chunk = json.loads(event.partition(b"data:")[2])
    if not isinstance(chunk, dict):
        raise ValueError("an event is no JSON object")
    return chunk
