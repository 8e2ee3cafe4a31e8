"""What happens to requests when engines die: they go on, suspects alone; others follow."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import signal

import pytest

from kserve_llamacpp.engine_client import guilt
from kserve_llamacpp.engine_client.generation import Request
from kserve_llamacpp.engine_client.guilt import GuiltyRequests
from kserve_llamacpp.engine_client.observers import EngineState
from kserve_llamacpp.engine_client.process import ProcessStuck
from kserve_llamacpp.engine_client.restarts import RestartPolicy, Restarts
from kserve_llamacpp.wire.frames import Fatal, Hello, SamplingParams
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
    """A suspect that gets a token is none any more, and the next joins it; the guilty one fails.

    It fails in an engine that it has for itself, not in the one that it shared.
    """
    run = ClientRun()
    await run.ready()
    first, guilty, last = (run.submit(prompt) for prompt in ("first", "guilty", "last"))
    run.begin(first, guilty, last)
    await run.die_and_come_back()
    await run.die_and_come_back()

    assert list(run.submitted()) == [first.id]
    run.give(first, "1")
    assert list(run.submitted()) == [first.id, guilty.id]
    await run.die_and_come_back()
    assert list(run.submitted()) == [guilty.id]
    await run.die_and_come_back()
    with pytest.raises(ApiError, match="failed several times"):
        await read(guilty)
    run.give(first, "2", "stop")
    assert list(run.submitted()) == [first.id, last.id]
    run.give(last, "3", "stop")

    assert (await read(first), await read(last)) == ("12", "3")
    assert run.seen.guilty == [("req-guilty", 4)]
    await run.client.stop()


async def test_a_death_beside_others_is_no_proof() -> None:
    """Who is on trial when an engine dies that others have had is tried again, alone."""
    run = ClientRun()
    await run.ready()
    first, second = run.submit("first"), run.submit("second")
    await run.die_and_come_back()
    await run.die_and_come_back()
    run.give(first, "1", "stop")
    assert list(run.submitted()) == [first.id, second.id]  # alone now, but not from the start

    await run.die_and_come_back()

    assert list(run.submitted()) == [second.id]
    run.give(second, "2", "stop")
    assert await read(second) == "2"
    await run.client.stop()


async def test_when_the_guilty_is_found_the_others_are_suspects_no_more() -> None:
    """A found culprit explains the deaths; for a minute new requests are on trial, one at a time.

    Afterwards all are submitted together again.
    """
    run = ClientRun()
    await run.ready()
    guilty, *others = (run.submit(prompt) for prompt in "gab")
    await run.die_and_come_back()
    await run.die_and_come_back()
    assert list(run.submitted()) == [guilty.id]

    await run.die_and_come_back()

    with pytest.raises(ApiError, match="failed several times"):
        await read(guilty)
    assert list(run.submitted()) == [others[0].id]
    run.give(others[0], "a")
    await run.pass_time(1)
    assert list(run.submitted()) == [other.id for other in others]
    run.give(others[1], "b", "stop")
    await run.pass_time(61)
    late = [run.submit(prompt) for prompt in "xy"]
    assert list(run.submitted())[2:] == [one.id for one in late]
    await run.client.stop()


async def test_after_a_guilty_one_a_single_death_makes_a_suspect_of_a_new_request() -> None:
    """While new requests are on trial a death has one suspect; those with tokens go on first.

    The suspect fails only when it ends an engine alone. The next new one waits until those with
    tokens have run for as long as was lost.
    """
    run = ClientRun()
    await run.ready()
    old, guilty = run.submit("old"), run.submit("guilty")
    run.give(old, "o")
    run.client.cancel(old)
    for _ in range(3):
        await run.die_and_come_back()
    good = run.submit("good")
    run.give(good, "g")
    await run.pass_time(1)
    second, third = run.submit("second"), run.submit("third")
    assert list(run.submitted()) == [good.id, second.id]
    await run.die()
    run.now += 3
    run.process.report(Hello(FACTS))
    assert list(run.submitted()) == [second.id]
    await run.die()
    run.now += 3
    run.process.report(Hello(FACTS))

    assert guilty.is_ended
    assert second.is_ended
    assert list(run.submitted()) == [good.id]
    await run.pass_time(5)
    assert list(run.submitted()) == [good.id]
    await run.pass_time(2)
    assert list(run.submitted()) == [good.id, third.id]
    await run.client.stop()


async def test_a_tenant_with_guilty_requests_comes_last() -> None:
    """While new requests are on trial, those of tenants without a guilty one go first."""
    run = ClientRun()
    await run.ready()
    run.submit("poison", tenant="bad")
    for _ in range(3):
        await run.die_and_come_back()
    first = run.submit("a", tenant="bad")
    second, third = run.submit("b", tenant="bad"), run.submit("c", tenant="good")
    assert list(run.submitted()) == [first.id]
    await run.pass_time(1)
    run.give(first, "x", "stop")

    assert list(run.submitted()) == [first.id, third.id]
    assert second.id not in run.submitted()
    await run.client.stop()


async def test_all_choices_of_a_guilty_prompt_fail_together() -> None:
    """A prompt that ends engines is tried alone once, not once for each of its choices."""
    run = ClientRun(max_waiting=100)
    await run.ready()
    choices = run.submit_choices(20)
    for _ in range(3):
        await run.die_and_come_back()

    assert all(choice.is_ended for choice in choices)
    assert run.process.num_runs == 4
    await run.client.stop()


def test_the_choices_of_a_prompt_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt of many choices is hashed once, and not at all where nothing is known."""
    request = ClientRun().request("poison")
    choices = [
        dataclasses.replace(request, sampling=SamplingParams(seed=at, choice=at)) for at in range(9)
    ]
    hashed: list[Request] = []
    digest = guilt._digest

    def counted(one: Request) -> bytes:
        hashed.append(one)
        return digest(one)

    monkeypatch.setattr(guilt, "_digest", counted)
    known = GuiltyRequests()
    assert not known.has_any(choices, 1.0)
    assert hashed == []
    known.add(request, 1.0)
    hashed.clear()
    assert known.has_any(choices, 1.0)
    assert not known.has_any([ClientRun().request("other")], 1.0)
    assert len(hashed) == 2
    assert not known.has_any(choices, 302.0)


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


async def test_past_the_restarts_requests_are_refused_until_an_engine_answers() -> None:
    """Past the cap running and new requests get a 503 that says when to come back.

    The engine is tried again all the same, and the model is ready by itself.
    """
    run = ClientRun(max_restarts=1)
    await run.ready()
    await run.die()
    generation = run.submit()
    await run.die()

    assert run.client.state is EngineState.FAILED
    assert not run.client.is_ready
    assert run.client.is_alive
    with pytest.raises(Unavailable) as caught:
        await read(generation)
    assert caught.value.code == "engine_failed"
    assert caught.value.retry_after_seconds == pytest.approx(5.5)
    with pytest.raises(Unavailable) as refused:
        run.submit()
    assert refused.value.retry_after_seconds is not None
    await run.die()
    assert run.process.num_runs == 4

    run.process.report(Hello(FACTS))

    assert run.client.is_ready
    again = run.submit()
    run.give(again, "ok", "stop")
    assert await read(again) == "ok"
    await run.client.idle()
    await run.client.stop()


async def test_pauses_grow_to_a_bound_for_ever() -> None:
    """The client sleeps as the restart policy says, tells each death, and never gives up."""
    run = ClientRun(max_restarts=3)
    await run.ready()
    for _ in range(40):
        await run.die(1)

    assert run.sleeps[:8] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert run.sleeps[8:] == [30.0] * 32
    assert run.seen.deaths == [1] * 40
    assert run.seen.states == [EngineState.READY, EngineState.RESTARTING, EngineState.FAILED]
    assert run.client.is_alive
    await run.client.stop()


async def test_a_token_ends_a_row_of_deaths() -> None:
    """Engines that answer before they die are worth their restarts: at once, and never too many."""
    run = ClientRun(max_restarts=1)
    await run.ready()
    generation = run.submit()
    for char in "abcdefgh":
        run.give(generation, char)
        await run.die_and_come_back()
    run.give(generation, "i", "stop")

    assert await read(generation) == "abcdefghi"
    assert run.sleeps == [0.0] * 8
    assert EngineState.FAILED not in run.seen.states
    await run.client.stop()


async def test_deaths_of_the_guilty_do_not_count_against_the_model() -> None:
    """With a cap of one restart, request after request is found guilty and the model stays ready.

    That holds while somebody gets a token in between: otherwise it is the model that is broken.
    """
    run = ClientRun(max_restarts=1)
    await run.ready()
    for number in range(12):
        guilty = run.submit(f"poison {number}")
        while not guilty.is_ended:
            await run.die_and_come_back()
        assert run.sleeps[-1] == 0.0
        good = run.submit("good")
        run.give(good, "x", "stop")
    assert EngineState.FAILED not in run.seen.states

    for number in range(12):
        guilty = run.submit(f"another {number}")
        while not guilty.is_ended:
            await run.die_and_come_back()
    assert EngineState.FAILED in run.seen.states
    await run.client.stop()


@pytest.mark.parametrize("reason", ["model_file", "configuration", "out_of_memory"])
async def test_what_keeps_an_engine_from_starting_may_pass_once_it_has_run(reason: str) -> None:
    """A model file that is away at a restart, or another reason, is tried again and again."""
    run = ClientRun(max_restarts=2)
    await run.ready()
    await run.die()
    for _ in range(20):
        run.process.report(Fatal(reason, "mend this"))  # type: ignore[arg-type]  # one of the literals
        await run.die(1)

    assert run.client.state is EngineState.FAILED
    assert run.seen.not_started == ["mend this"] * 20
    run.process.report(Hello(FACTS))
    assert run.client.is_ready
    assert run.client.fatal is None
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


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM])
@pytest.mark.parametrize("is_loaded", [True, False])
async def test_a_process_that_cannot_be_started_is_tried_again(
    number: int, is_loaded: bool
) -> None:
    """Without descriptors, processes or memory no engine starts; it does when there are some.

    That holds at the first load, too, and for requests: those that wait for a restart go on.
    """
    run = ClientRun()
    await run.start()
    run.process.error = OSError(number, "not now")
    run.process.is_broken = True
    if is_loaded:
        run.process.report(Hello(FACTS))
        generation = run.submit()
        run.process.die(-6)
    else:
        run.process.die(-6)
    async with asyncio.timeout(5):
        while len(run.seen.not_started) < 3:  # noqa: ASYNC110  # the client's sleeps take no time
            await asyncio.sleep(0)
    assert run.client.is_alive
    run.process.is_broken = False
    await settle()

    run.process.report(Hello(FACTS))
    assert run.client.is_ready
    if is_loaded:
        run.give(generation, "ok", "stop")
        assert await read(generation) == "ok"
    await run.client.stop()


async def test_where_no_process_can_be_started_for_minutes_the_server_ends() -> None:
    """After five minutes without a process the client is lost: liveness fails, requests end."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.process.is_broken = True
    lost_from = run.now
    run.process.die(-6)
    await run.client.lost()

    assert not run.client.is_alive
    assert 300 <= run.now - lost_from < 340
    assert len(run.seen.lost) == 1
    assert "Too many open files" in run.seen.lost[0]
    with pytest.raises(Unavailable):
        await read(generation)
    await run.client.stop()


async def test_a_program_that_is_not_there_ends_the_first_load() -> None:
    """What will not pass by itself ends the start, as a wrong setting does."""
    run = ClientRun()
    run.process.error = FileNotFoundError(errno.ENOENT, "No such file")
    run.process.is_broken = True
    await run.start()
    await run.client.settled()

    assert run.client.state is EngineState.FAILED
    assert run.client.fatal is not None
    assert run.client.fatal.reason == "configuration"
    await run.client.stop()


async def test_a_process_that_cannot_be_ended_loses_the_engine() -> None:
    """A process that SIGKILL does not end may hold the device: only a new server can help."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.process.fail(ProcessStuck("engine process 7 does not end"))
    await run.client.lost()

    assert not run.client.is_alive
    with pytest.raises(Unavailable):
        await read(generation)
    await run.client.stop()


async def test_a_report_that_cannot_be_used_is_a_death() -> None:
    """An error in the server's own handling of a report restarts the engine; nobody fails."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.process.fail(RuntimeError("no such event"))
    await settle()

    assert run.client.is_alive
    run.process.report(Hello(FACTS))
    run.give(generation, "ok", "stop")
    assert await read(generation) == "ok"
    await run.client.stop()


async def test_a_supervisor_that_ends_is_told() -> None:
    """When supervision itself fails, liveness is false and `lost` returns: nothing hangs."""

    class Faulty(Restarts):
        def died(self, now: float) -> None:
            raise RuntimeError("a mistake of ours")

    run = ClientRun(restarts=Faulty(RestartPolicy()))
    await run.ready()
    generation = run.submit()
    run.process.die(-6)
    await run.client.lost()

    assert not run.client.is_alive
    with pytest.raises(Unavailable):
        await read(generation)
    await run.client.stop()


@pytest.mark.parametrize(
    ("deaths", "delay", "is_exhausted"),
    [
        ([0], 0.0, False),
        ([0, 1], 0.5, False),
        ([0, 1, 2], 1.0, False),
        ([0, 1, 2, 3], 2.0, False),
        ([0, 1, 2, 3, 4], 3.0, False),
        ([0, 1, 2, 3, 4, 5], 3.0, True),
        ([0, 90, 180, 270, 360, 450], 3.0, True),
        ([0, 100.5], 0.0, False),
        ([0, 1, 2, 3, 4, 5, 105.5], 0.0, False),
    ],
)
def test_delays_double_up_to_a_bound(deaths: list[float], delay: float, is_exhausted: bool) -> None:
    """Delays grow with the deaths in a row and are bounded; a quiet window ends the row."""
    restarts = Restarts(
        RestartPolicy(
            max_restarts=5, window_seconds=100.0, backoff_seconds=0.5, max_backoff_seconds=3.0
        )
    )
    for now in deaths:
        restarts.died(now)

    assert (restarts.delay_seconds, restarts.is_exhausted) == (delay, is_exhausted)
