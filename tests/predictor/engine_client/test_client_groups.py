"""Several choices of one request: the queue takes them, and refuses them, together."""

from __future__ import annotations

import dataclasses

import pytest

from kserve_llamacpp.wire.frames import (
    FrameReader,
    Hello,
    Prompts,
    Submit,
    decode_command,
    encode,
)
from openai_protocol.errors import ApiError, RateLimited, Unavailable
from tests.predictor.fake_process import FACTS, ClientRun, read


async def _busy(max_waiting: int = 4, **limits: float) -> ClientRun:
    """Return a client whose slots run requests of nobody."""
    run = ClientRun(max_waiting=max_waiting, **limits)  # type: ignore[arg-type]  # numbers all
    await run.ready()
    run.begin(*(run.submit() for _ in range(FACTS.max_sequences)))
    return run


async def test_who_has_begun_is_not_refused_for_its_wait() -> None:
    """One choice streams, another still waits past the queue's deadline: both come to their end.

    An engine that died meanwhile changes nothing of it.
    """
    run = await _busy(queue_timeout_seconds=10)
    first, second = run.submit_choices(2)
    run.begin(first)
    run.give(first, "x")

    await run.pass_time(30)
    await run.die()
    await run.pass_time(30)
    run.process.report(Hello(FACTS))
    run.give(first, "y", "stop")
    await run.pass_time(30)
    run.begin(second)
    run.give(second, "z", "stop")

    assert [await read(first), await read(second)] == ["xy", "z"]
    assert run.seen.refusals == []
    await run.client.stop()


async def test_who_has_not_begun_is_refused_as_a_whole() -> None:
    """Past the deadline every choice of a request gets 503, and it counts as one refusal."""
    run = await _busy(queue_timeout_seconds=10)
    choices = run.submit_choices(3)

    await run.pass_time(11)

    for choice in choices:
        with pytest.raises(Unavailable) as caught:
            await choice.started()
        assert caught.value.code == "queue_timeout"
    assert run.seen.refusals == ["queue_timeout"]
    assert run.cancelled() == [choice.id for choice in choices]
    assert run.client.num_waiting == 0
    await run.client.stop()


async def test_a_whole_request_gives_way() -> None:
    """A full queue refuses all choices of a request for another tenant's, not one of them."""
    run = await _busy()
    kept = run.submit("kept", tenant="a")
    choices = run.submit_choices(3, tenant="a")

    newcomer = run.submit("new", tenant="b")

    for choice in choices:
        with pytest.raises(RateLimited) as caught:
            await choice.started()
        assert caught.value.code == "queue_full"
    assert run.seen.refusals == ["queue_full"]
    assert run.cancelled() == [choice.id for choice in choices]
    run.begin(kept, newcomer)
    assert run.client.num_waiting == 0
    await run.client.stop()


async def test_a_request_that_has_begun_gives_way_to_nobody() -> None:
    """Of the tenant with the most waiting, what has not begun goes; where all has, nothing does."""
    run = await _busy()
    begun = run.submit_choices(4, tenant="a")
    run.begin(begun[0])
    fresh = run.submit("fresh", tenant="a")

    run.submit("new", tenant="b")

    assert run.cancelled() == [fresh.id]
    with pytest.raises(RateLimited):
        run.submit("new", tenant="c")
    assert run.cancelled() == [fresh.id]
    assert not any(choice.is_ended for choice in begun)
    await run.client.stop()


async def test_as_many_give_way_as_must() -> None:
    """For a request of several choices several others go, the last ones; they are not too many."""
    run = await _busy(max_waiting=6)
    flood = [run.submit(tenant="a") for _ in range(6)]

    run.submit_choices(2, tenant="b")

    assert run.cancelled() == [flood[5].id, flood[4].id]
    assert run.client.num_waiting == 6
    await run.client.stop()


async def test_nobody_gives_way_in_vain() -> None:
    """Where not enough would leave for a request, nobody does."""
    run = await _busy(max_waiting=6)
    for _ in range(6):
        run.submit(tenant="a")

    with pytest.raises(ApiError):
        run.submit_choices(4, tenant="b")

    assert run.cancelled() == []
    assert run.client.num_waiting == 6
    await run.client.stop()


async def test_choices_are_taken_all_or_none() -> None:
    """A queue with room for some of a request's choices takes none of them."""
    run = await _busy(max_waiting=2)

    with pytest.raises(RateLimited):
        run.submit_choices(3)

    assert len(run.submitted()) == FACTS.max_sequences
    assert run.seen.refusals == ["queue_full"]
    await run.client.stop()


async def test_the_tokens_of_a_prompt_wait_once() -> None:
    """Choices of one prompt are as long a wait as one of them: it is computed for all at once."""
    run = await _busy(max_waiting=8, max_waiting_tokens=10)
    run.submit()  # a token

    run.submit_choices(4, "x" * 36)

    assert run.client.num_waiting == 5
    with pytest.raises(RateLimited):
        run.submit("x")
    await run.client.stop()


async def test_a_prompt_is_sent_once_for_all_choices() -> None:
    """The frames of a request's choices share its prompt, and each request brings its own.

    After a death it is sent once more.
    """
    run = ClientRun(max_waiting=8)
    await run.ready()
    run.submit_choices(3, "long")
    run.submit_choices(1, "another")
    assert [frame.prompt for frame in run.submitted().values()] == ["long", None, None, "another"]
    await run.die_and_come_back()
    assert [frame.prompt for frame in run.submitted().values()] == ["long", None, None, "another"]
    await run.client.stop()


async def test_many_choices_of_a_large_prompt_take_little_memory() -> None:
    """128 choices of 8 MB reach the engine as little more than 8 MB, and share it there."""
    run = ClientRun(max_waiting=200)
    await run.ready()
    request = dataclasses.replace(run.request(), prompt="x" * 8_000_000)
    run.client.submit([dataclasses.replace(request) for _ in range(128)])
    frames = [encode(frame) for frame in run.process.sent]
    assert sum(map(len, frames)) < 8_100_000

    prompts = Prompts()
    reader = FrameReader()
    commands = [decode_command(payload) for data in frames for payload in reader.feed(data)]
    requests = [prompts.whole(command) for command in commands if isinstance(command, Submit)]
    assert len(requests) == 128
    assert all(request.prompt is requests[0].prompt for request in requests)
    await run.client.stop()
