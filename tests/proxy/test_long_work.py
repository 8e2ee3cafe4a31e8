"""What holds up the event loop: one at a time, with pauses."""

from __future__ import annotations

import asyncio

import pytest

from openai_proxy.api.long_work import LongWork


class Clock:
    """A clock that work and sleep move on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)
        self.now += seconds

    def work(self, seconds: float) -> float:
        self.now += seconds
        return seconds


async def test_each_waits_as_long_as_the_one_before_took() -> None:
    """Three that come together are done in their order, with pauses; the first one at once."""
    clock = Clock()
    long = LongWork(clock, clock.sleep)

    results = await asyncio.gather(*(long.run(lambda s=s: clock.work(s)) for s in (2.0, 3.0, 1.0)))

    assert results == [2.0, 3.0, 1.0]
    assert clock.slept == [2.0, 3.0]


async def test_one_after_a_pause_waits_for_nothing() -> None:
    """Who comes after the pause begins at once, and in the pause waits for its rest."""
    clock = Clock()
    long = LongWork(clock, clock.sleep)
    await long.run(lambda: clock.work(2.0))
    clock.now += 0.5
    await long.run(lambda: clock.work(1.0))
    clock.now += 1.0
    await long.run(lambda: clock.work(1.0))

    assert clock.slept == [1.5]


async def test_a_failure_is_its_own() -> None:
    """What one raises goes to its own request; the next one's turn comes."""
    clock = Clock()
    long = LongWork(clock, clock.sleep)

    def fail() -> None:
        clock.work(2.0)
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        await long.run(fail)
    assert await long.run(lambda: clock.work(1.0)) == 1.0
    assert clock.slept == [2.0]


async def test_one_that_is_cancelled_in_the_pause_holds_up_nobody() -> None:
    """A request that ends while it waits does not keep the next one from its turn."""
    clock = Clock()
    long = LongWork(clock, clock.sleep)
    await long.run(lambda: clock.work(2.0))
    waiting = asyncio.create_task(long.run(lambda: clock.work(1.0)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert await long.run(lambda: clock.work(1.0)) == 1.0
