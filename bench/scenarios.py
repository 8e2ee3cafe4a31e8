"""What is asked of a running server, one class a question."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

from bench.figures import Outcome, outcome
from bench.load import Client, Request, Sample
from bench.prompts import Prompts
from bench.sizes import Sizes

_POLL_SECONDS = 0.02
_START_SECONDS = 120.0


class Scenario(Protocol):
    """One question to all servers; its cases are asked in each round, one after another."""

    name: str
    cases: tuple[str, ...]

    async def run(self, case: str, client: Client, prompts: Prompts) -> Outcome:
        """Ask a server once."""


class Distinct:
    """So many clients, each prompt new: the plain rate and latency."""

    def __init__(self, sizes: Sizes, name: str = "distinct") -> None:
        self.name = name
        self._sizes = sizes
        self._num_clients = {_clients(count): count for count in sizes.clients}
        self.cases: tuple[str, ...] = tuple(self._num_clients)

    async def run(self, case: str, client: Client, prompts: Prompts) -> Outcome:
        """Ask new prompts in a closed loop, at least two a client."""
        sizes, num_clients = self._sizes, self._num_clients[case]
        requests = [
            Request.of(prompts.text(sizes.prompt_words), sizes.max_tokens)
            for _ in range(max(sizes.requests, 2 * num_clients))
        ]
        return await _timed(client, client.ask_all(requests, num_clients))


class SharedPrefix:
    """All clients come at once with one system prompt that nobody has seen."""

    name = "shared-prefix"

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self.cases: tuple[str, ...] = (_clients(sizes.users),)

    async def run(self, case: str, client: Client, prompts: Prompts) -> Outcome:
        """Ask one question a client behind a new system prompt."""
        sizes = self._sizes
        system = {"role": "system", "content": prompts.text(sizes.prefix_words)}
        requests = [
            Request(
                [system, {"role": "user", "content": prompts.text(15)}],
                sizes.max_tokens,
            )
            for _ in range(sizes.users)
        ]
        return await _timed(client, client.ask_all(requests, sizes.users))


class LongPrompt:
    """A long prompt arrives while others are decoding: how long do they stand still?"""

    name = "long-prompt"
    _STREAMS = 3
    _TOKENS_BEFORE = 16
    _TOKENS_AT_MOST = 1024

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self.cases: tuple[str, ...] = (f"{self._STREAMS} streams",)

    async def run(self, case: str, client: Client, prompts: Prompts) -> Outcome:
        """Start streams, send the long prompt, and watch them until it has its first token."""
        streams = [Sample() for _ in range(self._STREAMS)]
        asks = [
            client.ask(Request.of(prompts.text(20), self._TOKENS_AT_MOST), stream)
            for stream in streams
        ]
        async with _background(asks) as tasks:
            await _until(
                lambda: all(len(stream.token_times) > self._TOKENS_BEFORE for stream in streams),
                tasks,
            )
            sent = client.clock()
            long = await client.ask(Request.of(prompts.text(self._sizes.long_words), 8))
            ended = client.clock()
        samples = [*streams, long]
        if any(sample.error for sample in samples):
            return outcome(samples, ended - sent)
        gaps = [gap * 1000 for stream in streams for gap in gaps_since(stream, sent, ended)]
        return outcome([long], ended - sent, longest_gap=max(gaps))


class Chats:
    """Users whose chats grow: each turn brings all that was said before."""

    name = "chats"

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self.cases: tuple[str, ...] = (f"{sizes.users} users, {sizes.turns} turns",)

    async def run(self, case: str, client: Client, prompts: Prompts) -> Outcome:
        """Let each user go on as soon as the last answer is complete."""
        sizes = self._sizes
        samples: list[Sample] = []

        async def user() -> None:
            messages: list[dict[str, str]] = []
            for _ in range(sizes.turns):
                messages.append({"role": "user", "content": prompts.text(40)})
                answer = await client.ask(Request(list(messages), sizes.max_tokens))
                samples.append(answer)
                messages.append({"role": "assistant", "content": answer.text})

        return await _timed(client, asyncio.gather(*(user() for _ in range(sizes.users))), samples)


class Tenants:
    """A tenant with one client beside one with many: does the crowd push it aside?"""

    name = "tenants"

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._crowds = {"B alone": 0, f"B, {sizes.crowd} clients of A": sizes.crowd}
        self.cases: tuple[str, ...] = tuple(self._crowds)

    async def run(self, case: str, client: Client, prompts: Prompts) -> Outcome:
        """Measure the lone tenant's requests, and the crowd's tokens in that time."""
        sizes = self._sizes
        crowd: list[Sample] = []

        async def member() -> None:
            while True:
                crowd.append(Sample())
                await client.ask(self._request(prompts, "a"), crowd[-1])
                if crowd[-1].error:
                    await asyncio.sleep(1)  # a server that refuses is not asked without a pause

        async with _background([member() for _ in range(self._crowds[case])]) as tasks:
            busy = math.ceil(self._crowds[case] / 4)
            await _until(lambda: sum(bool(s.token_times) for s in crowd) >= busy, tasks)
            began = client.clock()
            requests = [self._request(prompts, "b") for _ in range(sizes.lone_requests_a_round)]
            samples = await client.ask_all(requests, 1)
            seconds = client.clock() - began
        tokens = sum(began <= time for sample in crowd for time in sample.token_times)
        failed = [sample for sample in crowd if sample.error]
        return outcome(samples + failed, seconds, crowd_tokens_per_second=tokens / seconds)

    def _request(self, prompts: Prompts, tenant: str) -> Request:
        text = prompts.text(self._sizes.prompt_words)
        return Request.of(text, self._sizes.max_tokens, tenant)


def scenarios(sizes: Sizes) -> tuple[Scenario, ...]:
    """Return all that are asked of running servers."""
    return (
        Distinct(sizes),
        SharedPrefix(sizes),
        LongPrompt(sizes),
        Chats(sizes),
        Tenants(sizes),
    )


def gaps_since(stream: Sample, began: float, ended: float) -> list[float]:
    """Return the seconds between tokens that came after `began`.

    The silence up to `ended` counts, too, unless the answer was complete before.
    """
    times = [time for time in stream.token_times if time <= ended]
    times += [] if stream.num_tokens else [ended]
    return [later - earlier for earlier, later in itertools.pairwise(times) if later >= began]


async def _timed(
    client: Client,
    work: Coroutine[Any, Any, list[Sample]] | asyncio.Future[Any],
    samples: list[Sample] | None = None,
) -> Outcome:
    began = client.clock()
    result = await work
    return outcome(result if samples is None else samples, client.clock() - began)


@contextlib.asynccontextmanager
async def _background(
    work: list[Coroutine[Any, Any, Any]],
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Run tasks beside the block, and drop their requests at its end."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            await asyncio.sleep(0.5)  # the server notices that its clients have left


async def _until(condition: Callable[[], bool], tasks: list[asyncio.Task[Any]]) -> None:
    """Wait for a condition, for a bounded time and while there are tasks that can make it true."""
    for _ in range(round(_START_SECONDS / _POLL_SECONDS)):
        if condition() or any(task.done() for task in tasks):
            return
        await asyncio.sleep(_POLL_SECONDS)


def _clients(count: int) -> str:
    return f"{count} client{'s' if count > 1 else ''}"
