"""An engine that hangs is killed and its requests go on; when the model is ready meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from kserve_llamacpp.engine_client.observers import EngineState
from kserve_llamacpp.wire.frames import Hello, Loading, Stats, Step
from openai_protocol.errors import ApiError
from tests.predictor.fake_process import FACTS, ClientRun, read

_STEP = Stats(running=1, waiting=0, cells_used=1, cells_total=64, steps=1, decode_tokens=1)


async def _stepping() -> ClientRun:
    """Return a client whose engine has loaded its model and told of one short step."""
    run = ClientRun(watchdog_seconds=10)
    await run.ready()
    run.process.report(Step([], Stats(0, 0, 0, 64, 1, 1, step_seconds=0.1)))
    return run


async def test_a_hang_is_a_death_that_fails_nobody() -> None:
    """An engine that is silent over its work is killed; its requests go on in the next one."""
    run = await _stepping()
    generation = run.submit()
    run.begin(generation)
    run.give(generation, "ab")

    await run.pass_time(10.5)

    assert (run.seen.hangs, run.seen.deaths) == ([10.5], [-9])
    assert run.process.num_runs == 2
    run.process.report(Hello(FACTS))
    assert run.submitted()[generation.id].resume == [ord("a"), ord("b")]
    run.give(generation, "c", "stop")
    assert await read(generation) == "abc"
    await run.client.stop()


async def test_hangs_make_suspects_as_deaths_do() -> None:
    """A request under which engine after engine hangs fails in the end, alone."""
    run = await _stepping()
    guilty = run.submit()
    for _ in range(3):
        await run.pass_time(10.5)
        run.process.report(Hello(FACTS))

    with pytest.raises(ApiError) as caught:
        await read(guilty)
    assert (caught.value.status, caught.value.code) == (500, "engine_failed")
    await run.client.stop()


async def test_an_idle_engine_is_not_killed() -> None:
    """Without a request the engine tells nothing, and that is right."""
    run = await _stepping()
    generation = run.submit()
    run.begin(generation)
    run.give(generation, "x", "stop")

    await run.pass_time(1000)

    assert run.seen.hangs == []
    await run.client.stop()


async def test_the_next_engine_may_take_its_time_to_load() -> None:
    """Requests that wait for it are no reason to kill it: its limit is that of a load."""
    run = await _stepping()
    await run.die()
    run.submit()

    await run.pass_time(1000)
    run.process.report(Loading(0.1))
    await run.pass_time(199)
    run.process.report(Loading(0.2))
    await run.pass_time(199)

    assert run.seen.hangs == []
    await run.client.stop()


async def test_a_load_that_hangs_is_not_told_as_out_of_memory() -> None:
    """Our own SIGKILL while the model loads is no sign of the container's limit: tried again."""
    run = ClientRun(watchdog_seconds=1)
    await run.start()
    run.process.report(Loading(0.5))

    await run.pass_time(20.5)

    assert run.seen.hangs == [20.5]
    assert run.client.fatal is None
    assert run.process.num_runs == 2
    await run.client.stop()


async def test_a_restart_is_a_pause_for_half_a_minute() -> None:
    """While an engine is replaced the model stays ready, for requests wait; not when it takes long.

    Requests are taken all the while.
    """
    run = ClientRun()
    await run.ready()
    await run.die()
    assert run.client.is_ready

    await run.pass_time(30)
    assert run.client.is_ready
    await run.pass_time(0.5)
    assert not run.client.is_ready
    run.submit()

    run.process.report(Hello(FACTS))
    assert run.client.is_ready
    await run.client.stop()


async def test_a_restart_that_fails_again_is_one_pause() -> None:
    """The half minute counts from when the engine last answered, however often it is tried."""
    run = ClientRun(max_restarts=9)
    await run.ready()
    await run.die()
    await run.pass_time(20)
    await run.die()
    await run.pass_time(11)

    assert run.client.state is EngineState.RESTARTING
    assert not run.client.is_ready
    await run.client.stop()


@pytest.mark.parametrize("state", ["loading", "failed", "stopped"])
async def test_a_model_that_will_not_answer_is_not_ready(state: str) -> None:
    """Before the first load, past the cap of restarts, and at the end nobody is to send one."""
    run = ClientRun(max_restarts=0)
    await run.start()
    if state == "failed":
        run.process.report(Hello(FACTS))
        await run.die()
    if state == "stopped":
        await run.client.stop()

    assert run.client.state.value == state
    assert not run.client.is_ready
    await run.client.stop()


async def test_the_client_looks_at_the_clock_by_itself() -> None:
    """A running client ticks: who is late gets its refusal without anybody's help."""
    run = ClientRun(queue_timeout_seconds=10)
    run.client._is_ticking = True
    run.client._sleep = asyncio.sleep
    await run.ready()
    generation = run.submit()
    run.now += 11

    async with asyncio.timeout(5):
        with pytest.raises(ApiError):
            await generation.started()
    await run.client.stop()
