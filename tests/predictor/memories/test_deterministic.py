"""Deterministic mode over every kind of memory: the same bytes alone and in any company.

What a request gets alone, from an empty cache, is what it gets with hits, sharing, preemption,
resume and after a failed batch: tokens, text, and logprobs to the last bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kserve_llamacpp.wire.frames import SamplingParams
from tests.predictor.memories.model_run import Answer, Load, ModelRun, RecordingBackend, words
from tests.predictor.tiny_models import ARCHITECTURES

pytestmark = pytest.mark.model

_KEEPS_PARTS = {"llama", "phi3", "qwen3"}  # of the others only what is whole is of use
_RECURRENT = {"mamba", "jamba"}

_LONG = words(1, 640)
_PROMPTS = [
    _LONG,
    [*_LONG[:600], *words(2, 50)],
    words(3, 130),
    words(4, 30),
    [*words(3, 130)[:100], *words(5, 90)],
    [ord("x")],
    words(6, 520),
]
_NUM_TOKENS = 12
_known_alone: dict[RecordingBackend, dict[tuple[tuple[int, ...], float, int, int], Answer]] = {}
_SAMPLINGS = [SamplingParams(temperature=0), SamplingParams(temperature=1.0, seed=5)]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each in turn."""
    name: str = request.param
    return name


@pytest.fixture
def backend(architecture: str, load: Load) -> RecordingBackend:
    """A model of the architecture, as deterministic mode loads it."""
    return load(architecture, kv_cache="split", is_exact=True)


def _run(
    backend: RecordingBackend, host_cache_mib: int = 64, clock: Callable[[], float] = lambda: 0.0
) -> ModelRun:
    run = ModelRun(backend, True, host_cache_mib, clock)
    assert run.has_passed_the_self_test
    return run


def _alone(
    backend: RecordingBackend, requests: list[tuple[list[int], SamplingParams]]
) -> list[Answer]:
    """Return what requests get one after another, each from an empty cache; kept for others."""
    known = _known_alone.setdefault(backend, {})
    missing = {_key(*each): each for each in requests if _key(*each) not in known}
    if missing:
        run = _run(backend, host_cache_mib=0)
        for key, (prompt, sampling) in missing.items():
            known[key] = run.submit(prompt, _NUM_TOKENS, sampling)
            run.finish()
        assert run.total("cache_hits") == run.total("preemptions") == 0
    return [known[_key(*each)] for each in requests]


def _key(prompt: list[int], sampling: SamplingParams) -> tuple[tuple[int, ...], float, int, int]:
    return tuple(prompt), sampling.temperature, sampling.seed, sampling.choice


def _greedy_alone(backend: RecordingBackend, prompts: list[list[int]]) -> list[Answer]:
    return _alone(backend, [(prompt, _SAMPLINGS[0]) for prompt in prompts])


def _assert_same(answers: list[Answer], expected: list[Answer]) -> None:
    assert [answer.content for answer in answers] == [answer.content for answer in expected]


class _UnevenClock:
    """Takes steps for long or short at random, so that parts of prompts have every size."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 10 ** self._rng.uniform(-3, 0)
        return self._now


def test_hits(backend: RecordingBackend, architecture: str) -> None:
    """A prompt and the next turn of its conversation get from the cache what they get without."""
    first = _greedy_alone(backend, [_LONG])[0]
    next_turn = [*_LONG, *first.tokens, *words(7, 40)]
    prompts = [_LONG, next_turn, _LONG, _PROMPTS[1]]
    run = _run(backend)
    answers = [run.ask(prompt, _NUM_TOKENS) for prompt in prompts]

    known = len(_LONG) + _NUM_TOKENS - 1
    again, shared = (len(_LONG) - 1, 600) if architecture in _KEEPS_PARTS else (0, 0)
    assert [answer.cached for answer in answers] == [0, known, again, shared]
    _assert_same(answers, _greedy_alone(backend, prompts))


def test_the_same_prompt_again(backend: RecordingBackend, architecture: str) -> None:
    """What was kept right behind a prompt serves it again, where one token can be cut."""
    run = _run(backend)
    run.ask(_LONG, max_tokens=1)
    again = run.ask(_LONG, _NUM_TOKENS)

    assert again.cached == (0 if architecture in _RECURRENT else len(_LONG) - 1)
    _assert_same([again], _greedy_alone(backend, [_LONG]))


def test_sharing(backend: RecordingBackend, architecture: str) -> None:
    """Choices of a prompt that run together share it where a part can be copied, else not."""
    run = _run(backend)
    draws = [SamplingParams(temperature=1.0, seed=3, choice=choice) for choice in range(3)]
    answers = [run.submit(_LONG, _NUM_TOKENS, draw) for draw in draws]
    run.finish()

    again = len(_LONG) - 1 if architecture in _KEEPS_PARTS else 0
    assert [answer.cached for answer in answers] == [0, again, again]
    assert len({answer.text for answer in answers}) == 3
    _assert_same(answers, _alone(backend, [(_LONG, draw) for draw in draws]))


def test_large_batches(backend: RecordingBackend) -> None:
    """Prompts that are computed together in batches of 64 and more rows get what they get alone."""
    run = _run(backend, host_cache_mib=0)
    answers = [run.submit(prompt, _NUM_TOKENS) for prompt in _PROMPTS[1:5]]
    run.finish()

    assert any(len(batch) >= 64 and len(set(batch)) > 1 for batch in backend.batches)
    _assert_same(answers, _greedy_alone(backend, _PROMPTS[1:5]))


def test_preemption(backend: RecordingBackend) -> None:
    """Who gives up a slot for another tenant's request goes on with what it would have got."""
    run = _run(backend)
    prompts = [_PROMPTS[at] for at in (0, 2, 3, 4)]
    answers = [run.submit(prompt, _NUM_TOKENS, tenant="a") for prompt in prompts]
    run.steps(6)
    answers.append(run.submit(_PROMPTS[6], _NUM_TOKENS, tenant="b"))
    run.steps(3)
    run.scheduler.preempt()
    run.finish()

    assert run.total("preemptions") >= 2
    _assert_same(answers, _greedy_alone(backend, [*prompts, _PROMPTS[6]]))


def test_resume(backend: RecordingBackend) -> None:
    """A fresh engine goes on from the tokens of another as that one would have, after any token."""
    prompts = [(_LONG, _SAMPLINGS[1]), (_PROMPTS[2], _SAMPLINGS[0])]
    wholes = _alone(backend, prompts)
    run = _run(backend)
    for cut in (1, 5, _NUM_TOKENS - 1):
        rests = [
            run.submit(prompt, _NUM_TOKENS, sampling, resume=whole.tokens[:cut])
            for whole, (prompt, sampling) in zip(wholes, prompts, strict=True)
        ]
        run.finish()

        assert [rest.tokens for rest in rests] == [whole.tokens[cut:] for whole in wholes]
        assert [rest.logprobs for rest in rests] == [whole.logprobs[cut:] for whole in wholes]


def test_failed_batches(backend: RecordingBackend, architecture: str) -> None:
    """After batches that failed, none, some or all of them computed, everyone gets what is theirs.

    Who cannot be cut begins again from the queue.
    """
    run = _run(backend)
    prompts = [_PROMPTS[at] for at in (0, 2, 3)]
    answers = [run.submit(prompt, _NUM_TOKENS) for prompt in prompts[:2]]
    for num_computed in (0, 300, 1, 2):
        backend.faults.append(num_computed)
        run.steps(2)
    answers.append(run.submit(prompts[2], _NUM_TOKENS))
    backend.faults.append(20)
    run.finish()

    assert not backend.faults
    assert (run.total("preemptions") > 0) == (architecture in _RECURRENT)
    _assert_same(answers, _greedy_alone(backend, prompts))


def test_any_company(backend: RecordingBackend, architecture: str) -> None:
    """In random company, with hits, preemptions and parts of every size, all get what is theirs."""
    rng = random.Random(8)
    requests = [(rng.choice(_PROMPTS), rng.choice(_SAMPLINGS)) for _ in range(16)]
    run = _run(backend, host_cache_mib=1, clock=_UnevenClock(1))
    answers = []
    for prompt, sampling in requests:
        answers.append(run.submit(prompt, _NUM_TOKENS, sampling, tenant=rng.choice("abc")))
        run.steps(rng.randrange(6))
        if rng.random() < 0.2:
            run.scheduler.preempt()
    run.finish()

    assert run.total("preemptions") > 0
    assert run.total("cache_hits") > 0
    if architecture != "mamba":  # whose states are so small that all of them fit
        assert run.total("cache_evictions") > 0
    _assert_same(answers, _alone(backend, requests))
