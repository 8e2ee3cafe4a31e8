"""What happens to requests when engines die: they go on, suspects alone, up to a cap."""

from __future__ import annotations

import signal

import pytest

from kserve_llamacpp.engine.frames import Fatal, Hello
from kserve_llamacpp.engine.observers import EngineState
from kserve_llamacpp.engine.process import RestartPolicy, Restarts
from openai_protocol.errors import ApiError, Unavailable
from tests.predictor.fake_process import FACTS, ClientRun, read, settle


async def test_a_single_death_fails_nobody() -> None:
    """After one death all requests go on in the next engine, running and waiting ones alike."""
    run = ClientRun()
    await run.ready()
    generations = [run.submit(prompt) for prompt in "abc"]
    run.begin(*generations[:2])
    run.give(generations[0], "xy")

    await run.die_and_come_back()

    frames = run.submitted()
    assert list(frames) == [generation.id for generation in generations]
    assert [frame.resume for frame in frames.values()] == [[ord("x"), ord("y")], [], []]
    assert run.seen.deaths == [-6]
    await run.client.stop()


async def test_a_resumed_request_repeats_nothing() -> None:
    """The reader sees one text and one start, as if the engine had not died in between."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.begin(generation)
    run.give(generation, "ab")
    await run.die_and_come_back()
    run.begin(generation)
    run.give(generation, "cd")
    await run.die_and_come_back()
    assert run.submitted()[generation.id].resume == [ord(char) for char in "abcd"]
    run.begin(generation)
    run.give(generation, "e", "stop")

    assert await read(generation) == "abcde"
    assert len(run.seen.queue_times) == 1
    assert run.seen.prompt_tokens == [(3, 0)]
    assert len(run.seen.first_tokens) == 1
    await run.client.stop()


async def test_requests_that_come_during_a_restart_wait_for_it() -> None:
    """While the next engine loads, requests are taken and begin when it is ready."""
    run = ClientRun()
    await run.ready()
    await run.die()
    assert run.client.state is EngineState.RESTARTING

    generation = run.submit()

    assert run.submitted() == {}
    run.process.report(Hello(FACTS))
    assert list(run.submitted()) == [generation.id]
    await run.client.stop()


async def test_the_queue_is_bounded_during_a_restart_too() -> None:
    """A restart is no reason to take more requests than may wait."""
    run = ClientRun(max_waiting=1)
    await run.ready()
    await run.die()
    for _ in range(FACTS.max_sequences + 1):
        run.submit()

    with pytest.raises(ApiError) as caught:
        run.submit()

    assert caught.value.code == "queue_full"
    await run.client.stop()


async def test_a_request_cancelled_during_a_restart_is_never_submitted() -> None:
    """The next engine hears nothing of a request whose client left before it was ready."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.begin(generation)
    await run.die()

    run.client.cancel(generation)
    run.process.report(Hello(FACTS))

    assert run.process.sent == []
    await run.client.stop()


async def test_after_two_deaths_a_suspect_runs_alone() -> None:
    """Who ran in two engines that died is tried alone; everyone else waits, newcomers too."""
    run = ClientRun()
    await run.ready()
    suspect = run.submit("suspect")
    run.begin(suspect)
    await run.die_and_come_back()
    await run.die()
    waiting = run.submit("waiting")
    run.process.report(Hello(FACTS))
    newcomer = run.submit("newcomer")

    assert list(run.submitted()) == [suspect.id]
    run.begin(suspect)
    run.give(suspect, "fine", "stop")

    assert await read(suspect) == "fine"
    assert list(run.submitted()) == [suspect.id, waiting.id, newcomer.id]
    await run.client.stop()


async def test_a_third_death_fails_the_suspect_alone() -> None:
    """When the engine dies under the lone suspect, it fails; who waited goes on unharmed."""
    run = ClientRun()
    await run.ready()
    suspect = run.submit("suspect")
    run.begin(suspect)
    await run.die_and_come_back()
    await run.die()
    innocent = run.submit("innocent")
    run.process.report(Hello(FACTS))
    assert innocent.id not in run.submitted()

    await run.die_and_come_back()

    with pytest.raises(ApiError) as caught:
        await read(suspect)
    assert (caught.value.status, caught.value.code) == (500, "engine_failed")
    assert list(run.submitted()) == [innocent.id]
    run.begin(innocent)
    run.give(innocent, "ok", "stop")
    assert await read(innocent) == "ok"
    await run.client.stop()


async def test_several_suspects_are_tried_one_after_another() -> None:
    """Each suspect gets an engine to itself, and only the guilty one fails."""
    run = ClientRun()
    await run.ready()
    first, guilty, last = (run.submit(prompt) for prompt in ("first", "guilty", "last"))
    run.begin(first, guilty, last)
    await run.die_and_come_back()
    await run.die_and_come_back()

    assert list(run.submitted()) == [first.id]
    run.give(first, "1", "stop")
    assert list(run.submitted()) == [first.id, guilty.id]
    await run.die_and_come_back()
    assert list(run.submitted()) == [last.id]
    run.give(last, "3", "stop")

    assert (await read(first), await read(last)) == ("1", "3")
    with pytest.raises(ApiError, match="failed several times"):
        await read(guilty)
    await run.client.stop()


async def test_when_the_guilty_is_found_the_others_run_together() -> None:
    """A found culprit explains the deaths: who was there goes on with the others, not alone.

    One more death makes suspects of them again.
    """
    run = ClientRun()
    await run.ready()
    guilty, *others = (run.submit(prompt) for prompt in "gab")
    await run.die_and_come_back()
    await run.die_and_come_back()
    assert list(run.submitted()) == [guilty.id]

    await run.die_and_come_back()

    assert list(run.submitted()) == [other.id for other in others]
    with pytest.raises(ApiError, match="failed several times"):
        await read(guilty)
    await run.die_and_come_back()
    assert list(run.submitted()) == [others[0].id]
    await run.client.stop()


async def test_a_suspect_that_is_cancelled_lets_the_others_go() -> None:
    """When the suspect's client leaves, those that waited for its end are submitted."""
    run = ClientRun()
    await run.ready()
    suspect = run.submit("suspect")
    await run.die_and_come_back()
    await run.die_and_come_back()
    other = run.submit("other")
    assert other.id not in run.submitted()

    run.client.cancel(suspect)

    assert run.cancelled() == [suspect.id]
    assert other.id in run.submitted()
    await run.client.stop()


async def test_too_many_deaths_end_in_clear_errors() -> None:
    """Past the cap the engine stays down: running and new requests get a 503 that says so."""
    run = ClientRun(max_restarts=1)
    await run.ready()
    generation = run.submit()
    run.begin(generation)
    run.give(generation, "ab")
    await run.die_and_come_back()
    await run.die()

    assert run.client.state is EngineState.FAILED
    assert run.process.num_runs == 2
    deltas = generation.deltas()
    assert (await anext(deltas)).text == "ab"
    with pytest.raises(Unavailable) as caught:
        await anext(deltas)
    assert caught.value.code == "engine_failed"
    with pytest.raises(Unavailable):
        run.submit()
    await run.client.idle()
    await run.client.stop()


async def test_the_first_restart_is_at_once_and_later_ones_wait() -> None:
    """The client sleeps as the restart policy says, and tells each death."""
    run = ClientRun(max_restarts=3)
    await run.ready()
    for _ in range(4):
        await run.die(1)

    assert run.sleeps == [0.0, 0.5, 1.0]
    assert run.seen.deaths == [1, 1, 1, 1]
    assert run.seen.states == [EngineState.READY, EngineState.RESTARTING, EngineState.FAILED]
    await run.client.stop()


@pytest.mark.parametrize("reason", ["model_file", "configuration", "out_of_memory"])
async def test_an_engine_that_cannot_start_is_not_restarted(reason: str) -> None:
    """When the engine says that a restart would not help, it is believed."""
    run = ClientRun()
    await run.start()
    run.process.report(Fatal(reason, "mend this"))  # type: ignore[arg-type]  # one of the literals
    await run.die(1)
    await run.client.settled()

    assert run.client.state is EngineState.FAILED
    assert run.client.fatal == Fatal(reason, "mend this")  # type: ignore[arg-type]  # as above
    assert run.process.num_runs == 1
    await run.client.stop()


async def test_a_kill_while_loading_is_told_as_out_of_memory() -> None:
    """SIGKILL before the model is loaded is the container's memory limit; the text says so."""
    run = ClientRun()
    await run.start()
    await run.die(-signal.SIGKILL)
    await run.client.settled()

    assert run.client.fatal is not None
    assert run.client.fatal.reason == "out_of_memory"
    assert "--n_ctx" in run.client.fatal.message
    assert run.process.num_runs == 1
    await run.client.stop()


async def test_a_kill_after_loading_is_a_death_like_others() -> None:
    """SIGKILL under a loaded model restarts the engine."""
    run = ClientRun()
    await run.ready()
    await run.die(-signal.SIGKILL)

    assert run.client.fatal is None
    assert run.process.num_runs == 2
    await run.client.stop()


async def test_a_death_while_loading_is_tried_again() -> None:
    """An engine that dies for no known reason before it is ready is started again."""
    run = ClientRun(max_restarts=2)
    await run.start()
    await run.die(-signal.SIGSEGV)
    assert run.client.state is EngineState.LOADING
    await run.die(-signal.SIGSEGV)
    await run.die(-signal.SIGSEGV)
    await run.client.settled()

    assert run.client.state is EngineState.FAILED
    assert run.client.fatal is None
    await run.client.stop()


async def test_a_process_that_cannot_be_started_ends_the_waiting() -> None:
    """When starting fails by itself, requests and waiters get an error, never a hang."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.process.is_broken = True
    await run.die()
    await run.client.settled()

    assert run.client.state is EngineState.FAILED
    with pytest.raises(Unavailable):
        await read(generation)
    with pytest.raises(OSError, match="no such program"):
        await run.client.stop()
    await settle()


@pytest.mark.parametrize(
    ("deaths", "delay"),
    [
        ([0], 0.0),
        ([0, 1], 0.5),
        ([0, 1, 2], 1.0),
        ([0, 1, 2, 3], 2.0),
        ([0, 1, 2, 3, 4], 3.0),
        ([0, 1, 2, 3, 4, 5], None),
        ([0, 100.5], 0.0),
        ([0, 1, 2, 3, 4, 101.5], 2.0),
    ],
)
def test_delays_double_up_to_a_bound_within_the_window(
    deaths: list[float], delay: float | None
) -> None:
    """Delays grow with the deaths of the window, are bounded, and end with too many."""
    restarts = Restarts(
        RestartPolicy(
            max_restarts=5, window_seconds=100.0, backoff_seconds=0.5, max_backoff_seconds=3.0
        )
    )

    assert [restarts.delay_after_death(now) for now in deaths][-1] == delay
