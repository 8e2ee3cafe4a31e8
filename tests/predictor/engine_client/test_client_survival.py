"""Engines die of poison, or of nothing, again and again: no innocent request fails for it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest

from kserve_llamacpp.engine_client.generation import Generation
from kserve_llamacpp.engine_client.observers import EngineState
from kserve_llamacpp.wire.frames import Cancel, Hello, Output, Started, Step, Submit
from openai_protocol.errors import ApiError
from tests.predictor.fake_process import FACTS, STATS, ClientRun, read, settle

_TICK_SECONDS = 0.25
_LOAD_TICKS = 12  # an engine loads its model for 3 seconds
_SLOTS = FACTS.max_sequences
_POISON = "poison"


@dataclass
class Asked:
    """A request of the simulation: what it is, how it came, what became of it."""

    prompt: str
    num_tokens: int
    reader: asyncio.Task[str | ApiError]
    came_at: float


class World:
    """A client over an engine that lives in ticks; some requests end it, or the test does."""

    def __init__(self, seed: int) -> None:
        self.run = ClientRun(max_waiting=1000)
        self.rng = random.Random(seed)  # a simulation
        self.asked: list[Asked] = []
        self.num_deaths = 0
        self.num_tokens = 0  # of the running engine
        self.states: set[EngineState] = set()
        self._run_seen = 0
        self._loaded_at = 0
        self._num_read = 0
        self._running: dict[int, Submit] = {}
        self._given: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._dies_at: dict[int, int] = {}

    async def begin(self) -> None:
        await self.run.ready()
        self._run_seen = self.run.process.num_runs

    def ask(self, prompt: str, num_tokens: int, dies_at: int | None = None) -> Asked:
        """Submit a request of so many tokens; an engine that is to give the `dies_at`th dies."""
        tenant = prompt.split(" ", maxsplit=1)[0]
        try:
            generation = self.run.submit(prompt, tenant=tenant)
        except ApiError as error:
            failed = asyncio.create_task(_failed(error))
            self.asked.append(Asked(prompt, num_tokens, failed, self.run.now))
            return self.asked[-1]
        self._lengths[generation.id] = num_tokens
        if dies_at is not None:
            self._dies_at[generation.id] = dies_at
        reader = asyncio.create_task(_result(generation))
        self.asked.append(Asked(prompt, num_tokens, reader, self.run.now))
        return self.asked[-1]

    async def tick(self) -> None:
        """Let a quarter of a second pass: the engine loads, or gives each running one a token."""
        self.run.now += _TICK_SECONDS
        self.run.client.tick()
        await settle()
        process = self.run.process
        if process.num_runs != self._run_seen:
            self._run_seen = process.num_runs
            self._loaded_at = _LOAD_TICKS
            self._num_read = self.num_tokens = 0
            self._running.clear()
            self._given.clear()
        if self._loaded_at > 0:
            self._loaded_at -= 1
            if self._loaded_at == 0:
                process.report(Hello(FACTS))
        elif process.pid is not None:
            await self._step()
        self.states.add(self.run.client.state)

    async def _step(self) -> None:
        for frame in self.run.process.sent[self._num_read :]:
            if isinstance(frame, Submit):
                self._running[frame.id] = frame
                if self._dies_at.get(frame.id) == 0:  # in the tokenizer
                    await self.die()
                    return
            elif isinstance(frame, Cancel):
                self._running.pop(frame.id, None)
        self._num_read = len(self.run.process.sent)
        events: list[Started | Output] = []
        for at, frame in list(self._running.items())[:_SLOTS]:
            if at not in self._given:
                self._given[at] = len(frame.resume)
                events.append(Started(at, 3, 0, "hash"))
                continue
            self._given[at] += 1
            if self._dies_at.get(at) == self._given[at]:
                await self.die()
                return
            is_last = self._given[at] == self._lengths[at]
            text = chr(ord("a") + self._given[at] % 26)
            end = "stop" if is_last else None
            events.append(Output(at, [ord(text)], text, end, [], 0))  # type: ignore[arg-type]  # one of the literals
            if is_last:
                del self._running[at]
            self.num_tokens += 1
        self.run.process.report(Step(list(events), STATS))
        await settle()

    async def die(self) -> None:
        """End the engine."""
        self.num_deaths += 1
        await self.run.die()

    async def finish(self, seconds: float) -> None:
        """Go on until every request has ended; fails when that takes longer."""
        until = self.run.now + seconds
        while not all(one.reader.done() for one in self.asked):
            assert self.run.now < until, "a request that does not end"
            await self.tick()
        await self.run.client.stop()

    async def finish_of(self, at: int) -> None:
        """Go on until one request has ended."""
        while not self.asked[at].reader.done():
            await self.tick()

    def innocents(self) -> list[Asked]:
        return [one for one in self.asked if _POISON not in one.prompt]

    def check_innocents(self) -> None:
        """Every innocent request has got its whole text."""
        for one in self.innocents():
            text = one.reader.result()
            wanted = "".join(chr(ord("a") + n % 26) for n in range(1, one.num_tokens + 1))
            assert text == wanted, (one.prompt, text)


async def _failed(error: ApiError) -> str | ApiError:
    return error


async def _result(generation: Generation) -> str | ApiError:
    try:
        return await read(generation)
    except ApiError as error:
        return error


@pytest.mark.parametrize("seed", range(12))
async def test_poison_fails_alone(seed: int) -> None:
    """Poison among others: it fails after three deaths at most each, and nobody else does.

    The model never counts as failed, and all is over in bounded time.
    """
    world = World(seed)
    await world.begin()
    num_poisonous = world.rng.randint(1, 6)
    kinds = [True] * num_poisonous + [False] * 19
    world.rng.shuffle(kinds)
    for number, is_poison in enumerate(kinds):
        if is_poison:
            dies_at = world.rng.choice([0, 0, 1, 5, 20])
            world.ask(f"t{number} {_POISON} {number}", 30, dies_at)
        else:
            world.ask(f"t{number} innocent {number}", world.rng.randint(1, 40))
        for _ in range(world.rng.randint(0, 12)):
            await world.tick()
    await world.finish(600)

    world.check_innocents()
    for one in world.asked:
        if _POISON in one.prompt:
            error = one.reader.result()
            assert isinstance(error, ApiError)
            assert (error.status, error.code) == (500, "engine_failed")
    # a death after progress makes no suspect: one more for poison that dies in mid-text
    assert world.num_deaths <= 4 * num_poisonous
    assert EngineState.FAILED not in world.states


@pytest.mark.parametrize("seed", range(8))
async def test_deaths_from_outside_fail_nobody(seed: int) -> None:
    """SIGKILL after SIGKILL, each after a token at least: every request gets its whole text."""
    world = World(seed)
    await world.begin()
    for number in range(19):
        world.ask(f"t{number} innocent {number}", world.rng.randint(10, 60))
    while not all(one.reader.done() for one in world.asked):
        await world.tick()
        if world.num_tokens and world.rng.random() < 0.2:
            await world.die()
        assert world.run.now < 5000
    await world.finish(1)

    assert world.num_deaths > 6
    world.check_innocents()
    assert EngineState.FAILED not in world.states


async def test_six_deaths_in_a_row_end_no_stream() -> None:
    """Six kills under nineteen streams, a token in between: all of them go on to their ends."""
    world = World(1)
    await world.begin()
    for number in range(19):
        world.ask(f"t{number} innocent {number}", 40)
    for _ in range(6):
        while not world.num_tokens:
            await world.tick()
        await world.die()
        await world.tick()
    await world.finish(600)

    world.check_innocents()


async def test_a_flood_of_poison_takes_half_of_the_time_at_most() -> None:
    """One tenant sends another poison as soon as its last one failed: the others are served.

    Their answers take a few times as long, their failures are none.
    """
    world = World(3)
    await world.begin()
    poison: Asked | None = None
    num_sent = 0
    began = world.run.now
    for number in range(8):
        world.ask(f"good {number}", 200)
    while not all(one.reader.done() for one in world.innocents()):
        if poison is None or poison.reader.done():
            num_sent += 1
            poison = world.ask(f"bad {_POISON} {num_sent}", 30, 0)
        await world.tick()
        assert world.run.now < began + 2000
    seconds = world.run.now - began
    await world.finish(600)

    world.check_innocents()
    assert num_sent > 3
    # 8 streams in 4 slots, 200 tokens of a quarter of a second: 100 s without any poison
    assert seconds < 220
    assert EngineState.FAILED not in world.states


async def test_known_poison_is_refused_at_once() -> None:
    """The same request again, by anybody, is refused for five minutes: no engine dies of it."""
    world = World(1)
    await world.begin()
    world.ask(f"t1 {_POISON}", 30, 0)
    await world.finish_of(0)
    deaths = world.num_deaths
    again = world.run.request(f"t1 {_POISON}", tenant="other")
    with pytest.raises(ApiError) as caught:
        world.run.submit_one(again)
    assert (caught.value.status, caught.value.code) == (500, "engine_failed")
    assert caught.value.headers()["x-should-retry"] == "false"
    assert world.num_deaths == deaths == 3
    world.run.now += 301
    world.run.submit_one(again)
    assert world.run.seen.guilty == [(f"req-t1 {_POISON}", 3)]
    await world.run.client.stop()


async def test_what_waited_for_calm_is_submitted_when_care_ends() -> None:
    """No event of another request is needed, which may be minutes away."""
    run = ClientRun()
    await run.ready()
    good, bad = run.submit("good"), run.submit("bad")
    for _ in range(2):
        run.begin(good)
        run.give(good, "a")
        await run.die_and_come_back()
    run.now += 100.0
    await run.die()
    run.now += 1.0  # the next one loads; others are held for as long as was lost, 60 s at most
    run.process.report(Hello(FACTS))
    assert run.seen.guilty == [("req-bad", 3)]
    assert bad.is_ended
    new = run.submit("new")
    await run.pass_time(59.5)
    assert set(run.submitted()) == {good.id, new.id}
    await run.client.stop()
