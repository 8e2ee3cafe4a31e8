"""The server's side of the engine: submitting, streaming, cancelling, waiting."""

from __future__ import annotations

import asyncio

import pytest

from kserve_llamacpp.engine_client.generation import Delta, Request
from kserve_llamacpp.engine_client.observers import EngineState
from kserve_llamacpp.wire.frames import Loading, Rejected, SamplingParams, Step
from openai_protocol.errors import ApiError, InvalidRequest, RateLimited, Unavailable
from tests.predictor.fake_process import FACTS, STATS, ClientRun, read, read_deltas, settle


async def test_before_the_model_is_loaded_requests_get_503() -> None:
    """A request that comes while the model loads is told to come back, and is not kept."""
    run = ClientRun()
    await run.start()

    with pytest.raises(Unavailable) as caught:
        run.submit()

    assert (caught.value.status, caught.value.code) == (503, "model_not_ready")
    assert caught.value.headers() == {"retry-after": "5"}
    assert run.seen.refusals == ["model_not_ready"]
    assert run.client.num_waiting == 0
    await run.client.stop()


async def test_a_submitted_request_reaches_the_engine_whole() -> None:
    """Every field of a request is in the frame that the engine gets."""
    run = ClientRun()
    await run.ready()
    sampling = SamplingParams(temperature=0.5, seed=7)
    generation = run.submit_one(
        Request(
            *("req-1", [1, 2], 9, sampling),
            stops=["x"],
            add_special=False,
            tenant="t",
            priority=-1,
            cache_salt="s",
        )
    )

    frame = run.submitted()[generation.id]

    assert (frame.request_id, frame.prompt, frame.max_tokens) == ("req-1", [1, 2], 9)
    assert (frame.sampling, frame.stops, frame.add_special) == (sampling, ["x"], False)
    assert (frame.tenant, frame.priority, frame.cache_salt) == ("t", -1, "s")
    assert frame.resume == []
    await run.client.stop()


async def test_text_comes_as_the_engine_gives_it() -> None:
    """A reader gets the start, each step's text, and the end with its reason."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    reader = asyncio.create_task(read_deltas(generation))
    run.begin(generation)
    assert await generation.started() == 3
    for text, end in (("a", None), ("bc", None), ("d", "stop")):
        run.give(generation, text, end)
        await settle()

    assert await reader == [
        Delta("a", [97], None),
        Delta("bc", [98, 99], None),
        Delta("d", [100], "stop"),
    ]
    assert generation.tokens == [ord(char) for char in "abcd"]
    await run.client.stop()


async def test_a_slow_reader_gets_several_steps_at_once() -> None:
    """What came while nobody read is one delta: a slow reader catches up in one turn."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.begin(generation)
    for text, end in (("a", None), ("bc", None), ("d", "length")):
        run.give(generation, text, end)

    assert await read_deltas(generation) == [
        Delta("abcd", [ord(char) for char in "abcd"], "length")
    ]
    await run.client.stop()


async def test_the_queue_is_bounded() -> None:
    """Over the bound a request gets 429 with a code and Retry-After; none is lost or kept."""
    run = ClientRun(max_waiting=2)
    await run.ready()
    accepted = FACTS.max_sequences + 2
    for _ in range(accepted):
        run.submit()

    with pytest.raises(RateLimited) as caught:
        run.submit("c")

    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert caught.value.headers() == {"retry-after": "1"}
    assert run.client.num_waiting == len(run.submitted()) == accepted
    await run.client.stop()


async def test_without_a_queue_the_slots_are_still_used() -> None:
    """A bound of 0 refuses what would wait, not what an idle engine can begin with at once."""
    run = ClientRun(max_waiting=0)
    await run.ready()
    generations = [run.submit() for _ in range(FACTS.max_sequences)]

    for has_begun in (False, True):
        if has_begun:
            for generation in generations:
                run.begin(generation)
        with pytest.raises(RateLimited):
            run.submit()
    await run.client.stop()


async def test_an_engine_that_does_not_read_gets_no_more() -> None:
    """Requests that come and go while the engine hangs do not pile up without end."""
    run = ClientRun(max_waiting=100)
    await run.ready()
    run.process.num_unread_bytes = 1 << 30

    with pytest.raises(RateLimited):
        run.submit()
    await run.client.stop()


async def test_running_requests_do_not_fill_the_queue() -> None:
    """The bound is on those that wait: one that has started makes room for another."""
    run = ClientRun(max_waiting=1)
    await run.ready()
    for _ in range(FACTS.max_sequences + 1):
        run.begin(run.submit())

    run.submit("b")

    assert (run.client.num_running, run.client.num_waiting) == (FACTS.max_sequences + 1, 1)
    await run.client.stop()


@pytest.mark.parametrize(
    ("reason", "code", "field"),
    [
        ("context_length", "context_length_exceeded", "messages"),
        ("empty_prompt", "empty_prompt", "prompt"),
        ("token_out_of_range", "invalid_value", "prompt"),
    ],
)
async def test_what_the_engine_refuses_is_the_clients_mistake(
    reason: str, code: str, field: str
) -> None:
    """A refusal is a 400 with the engine's text and a stable code, about the prompt's field."""
    run = ClientRun()
    await run.ready()
    generation = run.submit_one(Request("r", "p", None, SamplingParams(), field=field))
    run.process.report(Step([Rejected(generation.id, reason, "why")], STATS))  # type: ignore[arg-type]  # one of the literals

    with pytest.raises(InvalidRequest) as caught:
        await generation.started()

    error = caught.value
    assert (error.status, error.code, error.param, error.message) == (400, code, field, "why")
    await run.client.stop()


async def test_a_request_that_fails_alone_gets_500_without_details() -> None:
    """A failure inside the model is a 500 whose text says nothing of the inside."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.begin(generation)
    run.process.report(Step([Rejected(generation.id, "failed", "row 7 was NaN")], STATS))

    with pytest.raises(ApiError) as caught:
        await read(generation)

    assert (caught.value.status, caught.value.code) == (500, "engine_failed")
    assert "NaN" not in caught.value.message
    await run.client.stop()


async def test_text_before_an_error_is_read_before_the_error() -> None:
    """An error ends a stream after what came before it, not instead of it."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.begin(generation)
    run.give(generation, "ab")
    run.client.fail_all(Unavailable("going"))

    assert await generation.started() == 3
    deltas = generation.deltas()
    assert (await anext(deltas)).text == "ab"
    with pytest.raises(Unavailable):
        await anext(deltas)
    await run.client.stop()


async def test_cancel_tells_the_engine_once() -> None:
    """A request that is cancelled is dropped in the engine by one frame, however often asked."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.begin(generation)

    run.client.cancel(generation)
    run.client.cancel(generation)

    assert run.cancelled() == [generation.id]
    assert run.client.num_running == 0
    assert run.seen.ends == [("abort", 0.0)]
    await run.client.stop()


async def test_cancel_after_the_end_does_nothing() -> None:
    """A request that has ended is not cancelled, and its end is counted once."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.begin(generation)
    run.give(generation, "a", "stop")

    run.client.cancel(generation)

    assert run.cancelled() == []
    assert run.seen.ends == [("stop", 0.0)]
    await run.client.stop()


async def test_what_comes_after_a_cancel_is_ignored() -> None:
    """Tokens of a cancelled request, which were on their way, harm nobody."""
    run = ClientRun()
    await run.ready()
    gone, stays = run.submit("a"), run.submit("b")
    run.begin(gone, stays)
    run.client.cancel(gone)

    run.give(gone, "x", "stop")
    run.give(stays, "y", "stop")

    assert gone.tokens == []
    assert await read(stays) == "y"
    await run.client.stop()


async def test_idle_waits_for_the_last_request() -> None:
    """`idle` returns when nothing runs or waits, and not before."""
    run = ClientRun()
    await run.ready()
    await run.client.idle()
    first, second = run.submit("a"), run.submit("b")
    idle = asyncio.create_task(run.client.idle())
    run.begin(first)
    run.give(first, "x", "stop")
    await settle()
    assert not idle.done()

    run.client.cancel(second)

    await asyncio.wait_for(idle, 1)
    await run.client.stop()


async def test_stop_ends_the_process_and_every_request() -> None:
    """Stopping ends the process, fails what runs with 503, and refuses what comes."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.begin(generation)

    await run.client.stop()

    assert run.client.state is EngineState.STOPPED
    assert run.client.pid is None
    with pytest.raises(Unavailable) as caught:
        await read(generation)
    assert caught.value.code == "server_shutting_down"
    with pytest.raises(Unavailable):
        run.submit()
    assert run.process.num_runs == 1
    assert run.seen.deaths == []


async def test_stop_before_the_model_is_loaded_ends_the_waiting() -> None:
    """Whoever waits for the model to be loaded is let go when the client is stopped."""
    run = ClientRun()
    await run.start()
    waiting = asyncio.create_task(run.client.settled())
    await settle()

    await run.client.stop()

    await asyncio.wait_for(waiting, 1)


async def test_loading_is_observed() -> None:
    """The observer is told how much is loaded, then that the engine is ready, and the facts."""
    run = ClientRun()
    await run.start()
    run.process.report(Loading(0.5))
    run.process.report(Loading(1.0))
    assert not run.client.is_ready

    await run.die_and_come_back()
    await run.client.settled()

    assert run.seen.fractions == [0.5, 1.0]
    assert run.seen.states == [EngineState.READY]
    assert run.client.facts is not None
    assert run.client.is_ready
    await run.client.stop()


async def test_times_are_measured_from_arrival_and_between_tokens() -> None:
    """Queue, first token, later tokens and the whole request are timed by the client's clock."""
    run = ClientRun()
    await run.ready()
    generation = run.submit()
    run.now += 2
    run.begin(generation)
    run.now += 3
    run.give(generation, "a")
    run.now += 0.5
    run.give(generation, "b")
    run.now += 0.25
    run.give(generation, "c", "stop")

    assert run.seen.queue_times == [2]
    assert run.seen.first_tokens == [5]
    assert run.seen.next_tokens == [0.5, 0.25]
    assert run.seen.ends == [("stop", 5.75)]
    assert run.seen.steps == [STATS] * 4
    await run.client.stop()
