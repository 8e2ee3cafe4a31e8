"""Default mode over every kind of memory: what comes from the cache is right.

llama.cpp's kernels depend on the batch, so that logits may differ in last bits: a few tenths at
most with these models. A wrong cell or state moves them by whole units.
"""

from __future__ import annotations

import random

import pytest

from kserve_llamacpp.wire.worker_options import KVCacheLayout
from tests.predictor.memories.model_run import Answer, Load, ModelRun, RecordingBackend, words

pytestmark = pytest.mark.model

_TOLERANCE = 0.6  # of a logprob
_NUM_COMPARED = 3  # the likeliest tokens
_NUM_TOP = 20
_ATTENTION = ["llama", "phi3", "qwen3", "gemma3"]
_RECURRENT = ["mamba", "jamba"]


def _assert_right(backend: RecordingBackend, asked: list[tuple[list[int], Answer]]) -> None:
    """Compare each answer's beginning with what its prompt gets when nothing is known of it."""
    run = ModelRun(backend, host_cache_mib=0)
    for at, (prompt, answer) in enumerate(asked):
        expected = run.submit(prompt, 1, num_top=_NUM_TOP, cache_salt=f"nobody else's {at}")
        run.finish()
        assert expected.cached == 0
        likeliest = expected.logprobs[0][1 : 1 + _NUM_COMPARED]
        found = {each.token: each.logprob for each in answer.logprobs[0]}
        for each in likeliest:
            assert found.get(each.token, -99.0) == pytest.approx(each.logprob, abs=_TOLERANCE)


def _prompts_with_common_beginnings(count: int) -> list[list[int]]:
    rng = random.Random(1)
    texts = [words(100 + at, rng.randint(150, 700)) for at in range(4)]
    prompts = []
    for at in range(count):
        text = rng.choice(texts)
        beginning = text[: rng.randint(20, len(text))]
        prompts.append([*beginning, *words(1000 + at, rng.randint(2, 120))])
    return prompts


@pytest.mark.parametrize("architecture", _ATTENTION)
def test_common_beginnings(load: Load, architecture: str) -> None:
    """Prompts that share beginnings, three at a time, in a cache that is too small for all.

    The next token's distribution is the one without a cache, whether the beginning was shared,
    evicted or brought back from the host.
    """
    backend = load(architecture, n_ctx=2048)
    run = ModelRun(backend)
    prompts = _prompts_with_common_beginnings(60)
    answers = []
    for at in range(0, len(prompts), 3):
        answers += [run.submit(prompt, 20, num_top=_NUM_TOP) for prompt in prompts[at : at + 3]]
        run.finish()

    assert run.total("cache_hits") > sum(map(len, prompts)) / 4
    assert run.total("cache_evictions") > 0
    # of a layer with a window only the window is saved: nothing of it goes to the host
    assert (run.total("host_cache_hits") > 0) == (architecture != "gemma3")
    _assert_right(backend, list(zip(prompts, answers, strict=True)))


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_a_named_prompt_of_several_tenants(load: Load, layout: KVCacheLayout) -> None:
    """Tenants share the cells of a named prompt and have their own behind it; each is right.

    What another tenant has sent behind it is not in what they get.
    """
    backend = load("llama", kv_cache=layout)
    run = ModelRun(backend)
    named = words(1, 200)
    run.share(named)
    secret = words(2, 60)
    prompts = [[*named, *secret, *words(at, 9)] for at in range(5)]
    answers = []
    for tenant, prompt in zip("abcab", prompts, strict=True):
        answers.append(run.submit(prompt, 8, num_top=_NUM_TOP, cache_salt=tenant))
        if tenant != "b":  # else beside the next one
            run.finish()

    run.finish()
    assert [answer.cached for answer in answers] == [0, 200, 200, 260, 260]
    _assert_right(backend, list(zip(prompts, answers, strict=True)))


@pytest.mark.parametrize("architecture", _ATTENTION)
def test_live_sequences_share(load: Load, architecture: str) -> None:
    """Three requests at once compute what they have in common once; each is right."""
    backend = load(architecture)
    run = ModelRun(backend)
    text = words(1, 600)
    prompts = [[*text, first, *words(first, 30)] for first in b"ABC"]
    answers = [run.submit(prompt, 8, num_top=_NUM_TOP) for prompt in prompts]
    run.finish()

    assert [answer.cached for answer in answers] == [0, 600, 600]
    _assert_right(backend, list(zip(prompts, answers, strict=True)))


@pytest.mark.parametrize("architecture", [*_ATTENTION, "jamba"])
def test_preempted_for_want_of_cells(load: Load, architecture: str) -> None:
    """Sequences that outgrow the cache give way, come back, and all get their whole text."""
    backend = load(architecture, n_ctx=512)
    run = ModelRun(backend)
    prompts = [words(at, 100) for at in range(4)]
    answers = [run.submit(prompt, 80, num_top=_NUM_TOP) for prompt in prompts]
    run.finish()

    assert run.total("preemptions") > 0
    assert [len(answer.tokens) for answer in answers] == [80] * 4
    _assert_right(backend, list(zip(prompts, answers, strict=True)))


@pytest.mark.parametrize("architecture", _RECURRENT)
def test_whole_states_alone(load: Load, architecture: str) -> None:
    """A recurrent state serves the next turn, which begins with all of it, and nothing else."""
    backend = load(architecture)
    run = ModelRun(backend)
    prompt = words(1, 600)
    first = run.submit(prompt, 12, num_top=_NUM_TOP)
    run.finish()
    next_turn = [*prompt, *first.tokens, *words(2, 40)]
    others = [next_turn, prompt, [*prompt[:500], *words(3, 40)]]
    answers = []
    for other in others:
        answers.append(run.submit(other, 8, num_top=_NUM_TOP))
        run.finish()

    assert [answer.cached for answer in answers] == [len(prompt) + 11, 0, 0]
    _assert_right(backend, list(zip(others, answers, strict=True)))


def test_a_window_that_has_moved_on_is_noticed(load: Load) -> None:
    """A sequence from the host has its last window only: it can be gone on with, not gone back."""
    backend = load("gemma3", kv_cache="split")
    run = ModelRun(backend, host_cache_mib=0)
    run.submit(words(1, 600), 2)
    run.steps(2)
    (slot,) = set(backend.batches[-1])
    memory = backend.memory
    state = memory.save(slot)
    assert state is not None
    assert memory.holds(slot, 300)
    assert memory.restore(slot, state)

    assert memory.holds(slot, 600)
    assert memory.holds(slot, 599)
    assert not memory.holds(slot, 590)
    assert not memory.holds(slot, 700)
