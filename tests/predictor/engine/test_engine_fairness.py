"""Tenants beside each other in one engine: nobody's flood is another's wait."""

from __future__ import annotations

import random

import pytest

from kserve_llamacpp.engine.cache.costs import Costs
from kserve_llamacpp.engine.cache.radix import RadixCache
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import FakeBackend
from tests.predictor.fake_memory import FakeMemory

_TOKENS = 8  # of each prompt and of each answer


def _run(**settings: int) -> EngineRun:
    return EngineRun(num_cells=256, **settings)


def _ask(run: EngineRun, tenant: str, priority: int = 0) -> int:
    return run.submit("p" * _TOKENS, max_tokens=_TOKENS, tenant=tenant, priority=priority)


def test_a_newcomer_gets_a_slot_of_who_has_them_all() -> None:
    """Every slot runs one tenant's requests: another's first one starts in the next step but one.

    Who gives way goes on later; nothing is lost.
    """
    run = _run()
    flood = [_ask(run, "a") for _ in range(12)]
    run.steps(5)

    newcomer = _ask(run, "b")
    run.steps(2)

    assert newcomer in run.started
    run.finish()
    assert all(len(run.tokens(one)) == _TOKENS for one in [*flood, newcomer])
    assert sum(stats.preemptions for stats in run.stats) == 1


def test_a_short_prompt_starts_beside_anothers_long_ones() -> None:
    """Every slot computes a long prompt of one tenant: another's short one is in the next steps."""
    run = EngineRun(num_cells=1024, step_tokens=20)
    for first in "pqrstu":
        run.submit(first + "p" * 200, max_tokens=1, tenant="a")
    waits = []
    for _ in range(10):
        run.steps(4)
        newcomer = run.submit("n", max_tokens=1, tenant="b")
        waits.append(0)
        while not run.is_done(newcomer):
            run.step()
            waits[-1] += 1

    assert max(waits) <= 2
    run.finish()


def test_nobody_gives_way_to_who_waits_for_a_prefix() -> None:
    """A newcomer whose prefix is just being computed could not use a slot: none is emptied for it.

    When the prefix is there, one request gives way, once.
    """
    memory = FakeMemory(512, num_slots=4, num_ids=64)
    cache = RadixCache(memory, 512, Costs(0.0, 0.0, 1.0), host_bytes=0)
    run = EngineRun(FakeBackend(num_cells=512, memory=memory), num_cells=512, cache=cache)
    preamble = "p" * 100
    for prompt in (preamble + "a", "one", "two", "six"):
        run.submit(prompt, max_tokens=60, tenant="a")
    run.steps(3)

    newcomer = run.submit(preamble + "b", max_tokens=2, tenant="b")
    while newcomer not in run.started:
        run.step()

    assert sum(stats.preemptions for stats in run.stats) == 1
    assert run.cached[newcomer] == len(preamble)
    run.finish()


def test_free_slots_go_round_the_tenants() -> None:
    """When slots are free, tenants that came together get one each before anyone gets a second."""
    run = _run(max_sequences=3)
    first, *_ = [_ask(run, "a") for _ in range(5)]
    others = [_ask(run, tenant) for tenant in "bc"]

    run.steps(3)

    assert set(run.started) == {first, *others}


def test_each_request_of_a_small_tenant_starts_at_once() -> None:
    """One client beside a tenant that keeps a queue: each of its requests starts in two steps."""
    run = _run()
    waits = []
    for _ in range(30):
        while run.scheduler.num_waiting < 8:
            _ask(run, "flood")
        own = _ask(run, "small")
        wait = 0
        while own not in run.started:
            run.step()
            wait += 1
        waits.append(wait)
        while not run.is_done(own):
            run.step()

    assert max(waits) <= 2


def test_priority_orders_a_tenants_own_requests() -> None:
    """The lower number starts first inside its tenant, and does not push another's back."""
    run = _run(max_sequences=1)
    running = _ask(run, "a")
    run.step()
    late, urgent = _ask(run, "a", priority=5), _ask(run, "a", priority=-5)
    other = _ask(run, "b")
    run.finish()

    assert run.started == [running, other, urgent, late]


@pytest.mark.parametrize("num_slots", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_backlogged_tenants_get_the_same(num_slots: int, seed: int) -> None:
    """While two tenants both wait, the tokens that were computed for each differ by a constant.

    It is what all slots and one more request may take, however much larger one's requests are.
    """
    rng = random.Random(seed)
    run = _run(max_sequences=num_slots)
    asked: dict[int, tuple[str, int]] = {}
    for tenant, count, prompts, answers in (
        ("large", 20, range(10, 17), range(6, 9)),
        ("small", 90, range(1, 4), range(1, 4)),
    ):
        for _ in range(count):
            prompt = rng.choice(prompts)
            one = run.submit("p" * prompt, max_tokens=rng.choice(answers), tenant=tenant)
            asked[one] = (tenant, prompt)
    num_compared = 0
    while True:
        run.step()
        given = {"large": 0, "small": 0}
        for one in run.started:
            tenant, prompt = asked[one]
            # the token drawn last was not computed
            given[tenant] += prompt + 2 * max(0, len(run.tokens(one)) - 1)
        if len({tenant for one, (tenant, _) in asked.items() if one not in run.started}) < 2:
            break
        assert abs(given["large"] - given["small"]) <= (16 + 2 * 8) * (num_slots + 1)
        num_compared += 1
    assert num_compared > 50
    run.finish(2000)


def test_a_newcomers_prompt_is_not_put_behind_those_who_get_tokens() -> None:
    """Its first part counts as service, but not while it gets no token: its parts come in a row."""
    run = EngineRun(num_cells=512, max_sequences=4)
    for _ in range(2):
        run.submit("d" * 4, max_tokens=100, tenant="flood")
    run.steps(3)
    run.submit("p" * 60, max_tokens=1, tenant="flood")
    run.steps(2)

    newcomer = run.submit("q" * 40, max_tokens=1, tenant="b")
    run.steps(10)  # 4 tokens of prompts in each

    assert run.is_done(newcomer)


def test_a_long_prompt_has_only_a_head_start() -> None:
    """Beyond that it counts, until its tenant and one that gets tokens were served alike."""
    run = EngineRun(num_cells=4096, max_sequences=4)
    run.submit("d" * 4, max_tokens=1000, tenant="flood")
    run.steps(3)
    run.submit("q" * 1500, max_tokens=1, tenant="b")
    run.steps(64)  # the head start

    other = run.submit("p" * 40, max_tokens=1, tenant="flood")
    run.steps(200)

    assert run.is_done(other)
