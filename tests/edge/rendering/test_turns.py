"""Turns are given one at a time, in rotation among tenants, and none is lost."""

from __future__ import annotations

import asyncio

import pytest

from chat_rendering.turns import Full, Turns


class Run:
    """Turns, and in which order they came."""

    def __init__(self, max_waiting: int = 9) -> None:
        self.turns = Turns(max_waiting)
        self.came: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        """Ask for turns; a name's first letter is its tenant."""
        for name in names:
            self.begin(name)
            await self.settle()

    def begin(self, name: str) -> None:
        """Ask for a turn once the test waits for something."""
        self.tasks[name] = asyncio.create_task(self._take(name))

    async def _take(self, name: str) -> None:
        await self.turns.take(name[0])
        self.came.append(name)

    async def settle(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def end(self, count: int) -> None:
        """End so many turns."""
        for _ in range(count):
            self.turns.give_back()
            await self.settle()


async def test_tenants_take_turns() -> None:
    """Each tenant's first comes before any tenant's second."""
    run = Run()
    await run.ask("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    await run.end(6)

    assert run.came == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_who_leaves_is_passed_over() -> None:
    """One that leaves while it waits, or in the moment of its turn, keeps nobody."""
    run = Run()
    await run.ask("a1", "a2", "a3", "b1")
    run.tasks["a2"].cancel()
    await run.settle()
    run.turns.give_back()
    run.tasks["a3"].cancel()
    await run.settle()

    assert run.came == ["a1", "b1"]
    assert run.turns.num_waiting == 0


async def test_one_that_leaves_just_before_its_turn_keeps_nobody() -> None:
    """A turn that comes while its taker is cancelled, but has not noticed, goes to the next one."""
    run = Run()
    await run.ask("a1", "a2", "a3")
    run.tasks["a2"].cancel()
    await run.end(2)
    await run.ask("a4")

    assert run.came == ["a1", "a3", "a4"]


async def test_one_that_leaves_just_before_it_gives_way_makes_room() -> None:
    """One that is cancelled and still counted is taken out for another tenant's first."""
    run = Run(max_waiting=3)
    await run.ask("a1", "a2", "a3", "a4")
    run.begin("b1")
    run.tasks["a4"].cancel()
    await run.settle()
    await run.end(3)

    assert run.came == ["a1", "a2", "b1", "a3"]


async def test_a_full_queue_refuses_the_tenant_that_fills_it() -> None:
    """The last one of a tenant with many gives way to another's first, and gets no room itself."""
    run = Run(max_waiting=3)
    await run.ask("a1", "a2", "a3", "a4")
    with pytest.raises(Full):
        await run.turns.take("a")
    await run.ask("b1")

    with pytest.raises(Full):
        await run.tasks["a4"]
    await run.end(3)
    assert run.came == ["a1", "a2", "b1", "a3"]


async def test_after_the_last_turn_the_next_one_is_free() -> None:
    """When nobody waits, a turn is given at once."""
    run = Run()
    await run.ask("a1")
    await run.end(1)
    await run.ask("a2")

    assert run.came == ["a1", "a2"]
