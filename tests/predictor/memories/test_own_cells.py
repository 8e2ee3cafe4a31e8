"""Slots with cells of their own, and a pool for those that outgrow them, on real models."""

from __future__ import annotations

import pytest

from tests.predictor.memories.model_run import (
    SLOTS,
    Answer,
    Load,
    ModelRun,
    RecordingBackend,
    words,
)

_OWN = 512
_TOLERANCE = 0.15  # a logprob, in another batch than before


def _load(load: Load, architecture: str = "llama") -> RecordingBackend:
    backend = load(architecture, n_ctx=4096, kv_cache="split+pool")
    assert (backend.own_length, backend.num_cells) == (_OWN, 2048)
    return backend


def _is_pooled(backend: RecordingBackend) -> bool:
    return any(slot >= SLOTS for batch in backend.batches for slot in batch)


def _assert_last_is_right(run: ModelRun, prompt: list[int], answer: Answer) -> None:
    """Compare the last token's distribution with that of one who computes all of it anew."""
    before = [*prompt, *answer.tokens[:-1]]
    fresh = run.submit(before, 1, cache_salt=f"nobody else's {len(before)}")
    run.finish()
    assert fresh.cached == 0
    found = {each.token: each.logprob for each in answer.logprobs[-1]}
    likeliest = fresh.logprobs[0][0]
    assert found[likeliest.token] == pytest.approx(likeliest.logprob, abs=_TOLERANCE)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3"])
def test_short_ones_stay_and_outgrown_ones_move(load: Load, architecture: str) -> None:
    """A sequence begins in its own cells, goes on in the pool, and is what it would be anyway."""
    backend = _load(load, architecture)
    run = ModelRun(backend)
    short = [(words(at, 60 + at), run.submit(words(at, 60 + at), 20)) for at in range(2)]
    long = [(words(at, 470), run.submit(words(at, 470), 80, num_top=5)) for at in (8, 9)]
    run.steps(3)
    assert not _is_pooled(backend)
    run.finish()

    assert _is_pooled(backend)
    assert all(len(answer.tokens) == 80 for _, answer in long)
    assert run.total("preemptions") == 0
    for prompt, answer in [*short, *long]:
        _assert_last_is_right(run, prompt, answer)


def test_long_prompts_begin_in_the_pool(load: Load) -> None:
    """A prompt that is longer than a slot's own cells is served, and its beginning is shared."""
    backend = _load(load)
    run = ModelRun(backend)
    text = words(1, 900)
    first = run.submit(text, 4)
    run.finish()
    second_prompt = [*text[:800], *words(2, 30)]
    second = run.submit(second_prompt, 4, num_top=5)
    run.finish()

    assert first.cached == 0
    assert second.cached == 800
    assert all(slot >= SLOTS for batch in backend.batches for slot in batch)
    _assert_last_is_right(run, second_prompt, second)


def test_a_full_pool_makes_outgrown_ones_wait(load: Load) -> None:
    """Four that need more than the pool has together all end, each with its own answer."""
    backend = _load(load)
    run = ModelRun(backend)
    asked = [(words(at, 500), run.submit(words(at, 500), 120, num_top=5)) for at in range(4)]
    run.finish()

    assert run.total("preemptions") > 0
    for prompt, answer in asked:
        assert len(answer.tokens) == 120
        _assert_last_is_right(run, prompt, answer)


def test_what_the_pool_holds_is_of_use_to_a_slot(load: Load) -> None:
    """A short prompt begins with what a long one has computed: it is restored where it fits."""
    backend = _load(load)
    run = ModelRun(backend)
    text = words(5, 700)
    run.submit(text, 4)
    run.finish()
    short = [*text[:300], *words(6, 20)]
    answer = run.submit(short, 4, num_top=5)
    run.finish()

    assert answer.cached == 300
    _assert_last_is_right(run, short, answer)


def test_a_failed_batch_is_computed_again(load: Load) -> None:
    """When a batch over both kinds of slots fails in its middle, nobody's answer changes."""
    backend = _load(load)
    run = ModelRun(backend)
    asked = [
        (words(at, length), run.submit(words(at, length), 12, num_top=5))
        for at, length in ((1, 100), (2, 900))
    ]
    while len(asked[1][1].tokens) < 3:
        run.step()
    backend.faults.extend([1, None])
    run.finish()

    for prompt, answer in asked:
        assert len(answer.tokens) == 12
        _assert_last_is_right(run, prompt, answer)
