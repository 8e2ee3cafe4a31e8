"""More requests than can be served: who is refused, when, and when it may come back."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine_client.generation import Request
from kserve_llamacpp.wire.frames import Hello, SamplingParams
from openai_protocol.errors import ApiError, RateLimited, Unavailable
from tests.predictor.fake_process import FACTS, ClientRun, read


async def _full(*tenants: str, max_waiting: int = 4) -> ClientRun:
    """Return a client whose slots run requests of nobody, and whose queue these tenants fill."""
    run = ClientRun(max_waiting=max_waiting)
    await run.ready()
    run.begin(*(run.submit() for _ in range(FACTS.max_sequences)))
    for at, tenant in enumerate(tenants):
        run.submit(f"{tenant}{at}", tenant=tenant)
    return run


async def test_a_request_that_waits_too_long_gets_503() -> None:
    """Who was not started in time is told so, with a code of its own, and leaves the engine."""
    run = ClientRun(queue_timeout_seconds=10)
    await run.ready()
    generation = run.submit()

    await run.pass_time(10)
    assert run.client.num_waiting == 1
    await run.pass_time(0.5)

    with pytest.raises(Unavailable) as caught:
        await generation.started()
    assert (caught.value.status, caught.value.code) == (503, "queue_timeout")
    assert caught.value.headers() == {"retry-after": "1"}
    assert run.seen.refusals == ["queue_timeout"]
    assert run.cancelled() == [generation.id]
    assert run.client.num_waiting == 0
    await run.client.stop()


async def test_a_request_that_has_started_may_take_its_time() -> None:
    """The deadline is for the start: what runs is not ended by it, also not across a death."""
    run = ClientRun(queue_timeout_seconds=10)
    await run.ready()
    generation = run.submit()
    run.begin(generation)

    await run.pass_time(60)
    await run.die()
    await run.pass_time(60)
    run.process.report(Hello(FACTS))
    run.give(generation, "x", "stop")

    assert await read(generation) == "x"
    await run.client.stop()


async def test_the_wait_for_an_engine_counts() -> None:
    """A request that came during a restart does not wait for ever, either."""
    run = ClientRun(queue_timeout_seconds=10)
    await run.ready()
    await run.die()
    generation = run.submit()

    await run.pass_time(11)

    with pytest.raises(Unavailable):
        await generation.started()
    run.process.report(Hello(FACTS))
    assert run.submitted() == {}
    await run.client.stop()


async def test_without_a_deadline_a_request_waits() -> None:
    """A setting of 0 is no deadline."""
    run = ClientRun(queue_timeout_seconds=0)
    await run.ready()
    run.submit()

    await run.pass_time(1000)

    assert run.client.num_waiting == 1
    await run.client.stop()


async def test_retry_after_is_the_time_that_the_queue_takes() -> None:
    """The answer follows the measured rate: so many wait, so fast do they end."""
    run = ClientRun(max_waiting=8)
    await run.ready()
    for _ in range(100):
        generation = run.submit()
        run.begin(generation)
        run.now += 1.5
        run.give(generation, "x", "stop")
    run.begin(*(run.submit() for _ in range(FACTS.max_sequences)))
    for _ in range(8):
        run.submit()

    with pytest.raises(RateLimited) as caught:
        run.submit()

    assert caught.value.headers() == {"retry-after": "14"}
    assert run.seen.refusals == ["queue_full"]
    await run.client.stop()


async def test_a_tenant_that_fills_the_queue_keeps_nobody_out() -> None:
    """A full queue takes who has fewer waiting; the last of the tenant with the most is refused."""
    run = await _full("a", "a", "a", "b")
    newest = list(run.submitted())[-2]

    other = run.submit("c", tenant="c")

    assert other.id in run.submitted()
    assert run.cancelled() == [newest]
    assert run.seen.refusals == ["queue_full"]
    assert run.client.num_waiting == 4
    await run.client.stop()


async def test_the_least_urgent_of_a_tenant_is_refused_first() -> None:
    """Of the tenant with the most the one with the highest priority number goes, then the last."""
    run = ClientRun(max_waiting=3)
    await run.ready()
    run.begin(*(run.submit() for _ in range(FACTS.max_sequences)))
    _, late, _ = (run.submit(tenant="a", priority=priority) for priority in (0, 5, 0))

    run.submit(tenant="b")

    assert run.cancelled() == [late.id]
    await run.client.stop()


@pytest.mark.parametrize(("tenants", "tenant"), [("aaaa", "a"), ("aab", "b"), ("ab", "a")])
async def test_a_full_queue_is_full_for_who_has_its_share(tenants: str, tenant: str) -> None:
    """Nobody is displaced by a tenant that has as many waiting, or would have by it."""
    run = await _full(*tenants, max_waiting=len(tenants))

    with pytest.raises(RateLimited):
        run.submit(tenant=tenant)

    assert run.cancelled() == []
    await run.client.stop()


async def test_the_tokens_that_wait_are_bounded() -> None:
    """Beside others a prompt waits only within the bound: ids count each, four characters as one.

    What gets a slot at once does not wait, and what starts makes room.
    """
    run = ClientRun(max_waiting_tokens=10)
    await run.ready()
    run.begin(*(run.submit("x" * 99) for _ in range(FACTS.max_sequences)))
    first = run.submit("x" * 99)
    with pytest.raises(RateLimited) as caught:
        run.submit("x")
    assert (caught.value.status, caught.value.code) == (429, "queue_full")

    run.begin(first)
    run.submit("x" * 33)  # 9 tokens
    with pytest.raises(RateLimited):
        run.submit_one(Request("r", [1, 2], None, SamplingParams()))
    run.submit_one(Request("r", [1], None, SamplingParams()))

    assert run.client.num_waiting == 2
    await run.client.stop()


async def test_an_engine_that_does_not_read_displaces_nobody() -> None:
    """Where the bound is on bytes, another's place helps nobody."""
    run = await _full("a", "a", "a", "a")
    run.process.num_unread_bytes = 1 << 30

    with pytest.raises(ApiError):
        run.submit(tenant="b")

    assert run.cancelled() == []
    await run.client.stop()
