"""Client and engine together, with engines that die at random: no text twice, none lost."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_llamacpp.engine_client.generation import Generation, Request
from kserve_llamacpp.wire.frames import (
    Cancel,
    FrameReader,
    Hello,
    Prompts,
    SamplingParams,
    Submit,
    decode_command,
    encode,
)
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import FakeBackend
from tests.predictor.fake_process import FACTS, ClientRun, read, settle

_TEXT = "Grüße an 😀: 1 STO 2 ST"
_PIECES = _TEXT.encode()


def _answer(prompt: tuple[int, ...], position: int) -> int:
    """Answer each prompt with the text from another place on, over and over."""
    return _PIECES[(prompt[-1] + position) % len(_PIECES)]


def _alone(prompt: str, max_tokens: int) -> str:
    run = EngineRun(FakeBackend(_answer))
    one = run.submit(prompt, max_tokens=max_tokens, stops=["STOP"])
    run.finish()
    return run.text(one)


class _World:
    """A client whose fake process runs a real engine, fed by the frames that were sent."""

    def __init__(self) -> None:
        self.run = ClientRun(max_waiting=100, max_restarts=100)
        self._engine = EngineRun(FakeBackend(_answer, num_cells=48), num_cells=48)
        self._prompts = Prompts()
        self._num_read = 0

    async def begin(self) -> None:
        await self.run.ready()

    async def step(self) -> None:
        """Let the engine take its commands, step, and report: all as bytes."""
        engine = self._engine.engine
        for frame in self.run.process.sent[self._num_read :]:
            (payload,) = FrameReader().feed(encode(frame))
            command = decode_command(payload)
            if isinstance(command, Submit):
                engine.submit(self._prompts.whole(command))
            elif isinstance(command, Cancel):
                engine.cancel(command.id)
        self._num_read = len(self.run.process.sent)
        self.run.process.report(engine.step())
        self._engine.check_integrity()
        await settle()

    async def die(self) -> None:
        """End the engine, lose all that it knew, and load the next one."""
        await self.run.die()
        self._engine = EngineRun(FakeBackend(_answer, num_cells=48), num_cells=48)
        self._prompts = Prompts()
        self._num_read = 0
        self.run.process.report(Hello(FACTS))

    def submit(self, prompt: str, max_tokens: int) -> Generation:
        request = Request(f"req-{prompt}", prompt, max_tokens, SamplingParams(), stops=["STOP"])
        return self.run.submit_one(request)


async def _serve(prompts: list[str], steps_between_deaths: list[int]) -> list[str | None]:
    """Serve all prompts while engines die; return the texts, None for a request that failed."""
    world = _World()
    await world.begin()
    readers = [
        asyncio.create_task(_read(world.submit(prompt, 12 + 3 * at)))
        for at, prompt in enumerate(prompts)
    ]
    for steps in steps_between_deaths:
        for _ in range(steps):
            await world.step()
        await world.die()
    for _ in range(600):
        if all(reader.done() for reader in readers):
            break
        await world.step()
    await settle()
    assert all(reader.done() for reader in readers), "a request that never ends"
    assert world.run.client.num_running == world.run.client.num_waiting == 0
    await world.run.client.stop()
    return [reader.result() for reader in readers]


async def _read(generation: Generation) -> str | None:
    try:
        return await read(generation)
    except Exception:
        return None


@settings(max_examples=40)
@given(
    prompts=st.lists(st.text(alphabet="abcdef", min_size=1, max_size=8), min_size=1, max_size=5),
    steps=st.lists(st.integers(min_value=0, max_value=15), max_size=2),
)
def test_up_to_two_deaths_change_no_answer(prompts: list[str], steps: list[int]) -> None:
    """Whenever engines die, each reader gets the text that it would have got without."""
    texts = asyncio.run(_serve(prompts, steps))

    assert texts == [_alone(prompt, 12 + 3 * at) for at, prompt in enumerate(prompts)]


@settings(max_examples=40)
@given(
    prompts=st.lists(st.text(alphabet="abcdef", min_size=1, max_size=8), min_size=1, max_size=5),
    steps=st.lists(st.integers(min_value=0, max_value=15), min_size=3, max_size=6),
)
def test_any_number_of_deaths_ends_every_request(prompts: list[str], steps: list[int]) -> None:
    """Every request ends with its own whole text or with an error, whatever dies when."""
    texts = asyncio.run(_serve(prompts, steps))

    for at, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        assert text is None or text == _alone(prompt, 12 + 3 * at)
    # a death fails one request at most, and only one that has seen three
    assert texts.count(None) <= len(steps) - 2
