"""The real sampler over fixed logits: its distributions are those of a plain model in numpy."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_llamacpp.engine.backend import LogitsNotFinite
from kserve_llamacpp.engine.llama.sampler import LlamaSampler, Samplers
from kserve_llamacpp.wire.frames import SamplingParams

_END = 0
_SUPPRESSED = 1


class _Vocabulary:
    """As much of a vocabulary as samplers ask for: one token ends, one must not be written."""

    def __init__(self, size: int, suppressed: list[int]) -> None:
        self.size = size
        self.end_tokens = [_END]
        self.suppressed_tokens = suppressed

    def text(self, token: int, special: bool) -> bytes:
        return b"<%d>" % token

    def piece(self, token: int) -> bytes:
        return b"" if token == _END else self.text(token, special=False)


class _FixedLogits(Samplers):
    """Samplers whose every row has the same logits."""

    def __init__(self, logits: npt.NDArray[np.float32], suppressed: list[int] | None = None):
        vocabulary: Any = _Vocabulary(len(logits), suppressed or [])
        super().__init__(None, vocabulary, max_length=100)
        self.fixed = logits

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        return self.fixed


def _random_logits(seed: int, size: int) -> npt.NDArray[np.float32]:
    spread = 1 + seed % 5
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def _drawn_from(samplers: Samplers) -> dict[int, float]:
    """Return the distribution that the last draw was from: llama.cpp leaves it in the array."""
    array = samplers.candidates._array
    return {array.data[at].id: array.data[at].p for at in range(array.size)}


def _model(logits: npt.NDArray[np.float32], params: SamplingParams) -> dict[int, float]:
    """Return the distribution that the parameters define, step by step in llama.cpp's order."""
    logits = logits.astype(np.float64)
    ids = np.argsort(-logits)
    ids = ids[logits[ids] > -np.inf]

    def probabilities() -> npt.NDArray[np.float64]:
        weights = np.exp(logits[ids] - logits[ids].max())
        result: npt.NDArray[np.float64] = weights / weights.sum()
        return result

    if params.top_k > 0:
        ids = ids[: params.top_k]
    if params.typical_p < 1:
        p = probabilities()
        surprise = np.abs(-np.log(p) + (p * np.log(p)).sum())
        order = np.argsort(surprise)
        count = int(np.argmax(np.cumsum(p[order]) > params.typical_p)) + 1
        ids = ids[np.sort(order[:count])]
    if params.top_p < 1:
        ids = ids[: int(np.argmax(np.cumsum(probabilities()) >= params.top_p)) + 1]
    if params.min_p > 0:
        p = probabilities()
        ids = ids[p >= params.min_p * p.max()]
    if params.xtc_probability == 1 and params.xtc_threshold <= 0.5:
        above = int((probabilities() >= params.xtc_threshold).sum())
        ids = ids[max(0, above - 1) :]
    logits = logits / params.temperature
    return dict(zip(ids.tolist(), probabilities().tolist(), strict=True))


@settings(max_examples=400)
@given(
    seed=st.integers(min_value=0, max_value=10_000),
    size=st.sampled_from([3, 50, 3000, 3000]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 0, 1, 5, 40, 500, 5000]),
    typical_p=st.sampled_from([1.0, 1.0, 1.0, 0.2, 0.9]),
    top_p=st.sampled_from([0.1, 0.55, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.0001, 0.05, 0.5]),
    xtc=st.sampled_from([None, 0.02, 0.13, 0.45]),
)
def test_the_distribution_is_the_models(
    seed: int,
    size: int,
    temperature: float,
    top_k: int,
    typical_p: float,
    top_p: float,
    min_p: float,
    xtc: float | None,
) -> None:
    """Whatever is left out before llama.cpp looks at it, the draw is from the same distribution."""
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        typical_p=typical_p,
        top_p=top_p,
        min_p=min_p,
        xtc_probability=0.0 if xtc is None else 1.0,
        xtc_threshold=xtc or 0.1,
    )
    logits = _random_logits(seed, size)
    samplers = _FixedLogits(logits)
    sampler = samplers.make(params, [])

    token = sampler.sample(0, 0)

    found, expected = _drawn_from(samplers), _model(logits, params)
    if params.top_p < 1 and size > 100 and abs(len(found) - len(expected)) == 1:
        # of so many tokens the probabilities up to the last one differ by a rounding
        found, expected = _of_the_same_size(found, expected)
    distance = sum(abs(found.get(at, 0) - expected.get(at, 0)) for at in found | expected) / 2
    assert distance < 1e-3
    assert token in found
    sampler.close()


def _of_the_same_size(*distributions: dict[int, float]) -> list[dict[int, float]]:
    """Leave the least likely token of the larger one out, and spread its probability."""
    size = min(map(len, distributions))
    result = []
    for each in distributions:
        kept = sorted(each, key=each.__getitem__, reverse=True)[:size]
        total = sum(each[token] for token in kept)
        result.append({token: each[token] / total for token in kept})
    return result


def _draws(sampler: LlamaSampler, count: int, start: int = 0) -> list[int]:
    return [sampler.sample(0, start + at) for at in range(count)]


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_come_as_often_as_they_should(temperature: float) -> None:
    """Over many positions the frequencies are the probabilities, within four deviations."""
    params = SamplingParams(temperature=temperature, min_p=0.02, seed=3)
    logits = _random_logits(1, 40)
    count = 4000
    counts = Counter(_draws(_FixedLogits(logits).make(params, []), count))

    for token, p in _model(logits, params).items():
        deviation = math.sqrt(count * p * (1 - p))
        assert abs(counts[token] - count * p) <= 4 * deviation + 1


def test_a_draw_depends_on_seed_choice_and_position_alone() -> None:
    """A sampler that begins anywhere draws as one that was there from the beginning."""
    samplers = _FixedLogits(_random_logits(2, 200))
    params = SamplingParams(seed=7, temperature=2.0)
    all_tokens = _draws(samplers.make(params, []), 30)

    assert _draws(samplers.make(params, []), 10, start=20) == all_tokens[20:]
    for other in ({"choice": 1}, {"seed": 8}):
        changed = msgspec.structs.replace(params, **other)
        assert _draws(samplers.make(changed, []), 30) != all_tokens


def test_xtcs_chance_depends_on_its_place_alone_too() -> None:
    """XTC leaves out the same tokens at the same positions, wherever a sampler begins."""
    samplers = _FixedLogits(np.log(np.array([0.5, 0.3, 0.2], np.float32)))
    params = SamplingParams(seed=7, xtc_probability=0.5, xtc_threshold=0.25)
    sizes = []
    for start in (0, 20):
        sampler = samplers.make(params, [])
        for position in range(start, 40):
            sampler.sample(0, position)
            sizes.append(len(_drawn_from(samplers)))

    assert sizes[20:40] == sizes[40:]
    assert set(sizes) == {2, 3}


def test_xtc_happens_as_often_as_it_should_whatever_is_drawn() -> None:
    """XTC's chance is its own: it leaves the best out at its rate, and bends no other draw."""
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    params = SamplingParams(seed=5, xtc_probability=0.5, xtc_threshold=0.25)
    count = 4000
    counts = Counter(_draws(_FixedLogits(logits).make(params, []), count))

    # half of the time all three, half of the time the last two: 0.3 and 0.2
    for token, p in enumerate([0.25, 0.15 + 0.3, 0.1 + 0.2]):
        assert abs(counts[token] - count * p) <= 4 * math.sqrt(count * p * (1 - p))


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 3.0},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"dry_multiplier": 2.0, "dry_allowed_length": 1, "dry_sequence_breakers": ()},
        {"min_tokens": 25, "logit_bias": {3: 2.0}},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_replay_gives_the_same_state(fields: dict[str, Any], temperature: float) -> None:
    """A sampler that was told the tokens so far goes on as the one that drew them."""
    samplers = _FixedLogits(_random_logits(10, 20) * np.float32(0.3))
    params = SamplingParams(seed=1, temperature=temperature, **fields)
    prompt = [5, 6, 5, 6, 7]
    whole = _draws(samplers.make(params, prompt), 60)
    resumed = samplers.make(params, prompt)
    for token in whole[:30]:
        resumed.accept(token)

    assert _draws(resumed, 30, start=30) == whole[30:]
    plain = SamplingParams(seed=1, temperature=temperature)
    assert _draws(samplers.make(plain, prompt), 60) != whole


def test_greedy_takes_the_best_after_all_changes() -> None:
    """At temperature 0 the best token is taken: after biases, penalties and what is forbidden."""
    logits = np.array([5.0, 9.0, 4.0, 3.5], np.float32)

    def greedy(prompt: list[int] | None = None, **fields: Any) -> int:
        samplers = _FixedLogits(logits, suppressed=[_SUPPRESSED])
        return samplers.make(SamplingParams(temperature=0, **fields), prompt or []).sample(0, 0)

    assert greedy() == 0
    assert greedy(logit_bias={2: 2.0}) == 2
    assert greedy(logit_bias={1: 100.0}) == 0
    assert greedy(ignore_eos=True) == 2
    assert greedy(ignore_eos=True, stop_token_ids=[_END]) == _END
    assert greedy(min_tokens=1) == 2
    assert greedy(min_tokens=1, stop_token_ids=[2]) == 3
    assert greedy(prompt=[0], repetition_penalty=1.5) == 2


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20, 1e-5, 1e-3])
def test_a_tiny_temperature_takes_the_best(temperature: float) -> None:
    """Near 0 the best token is drawn: no logit becomes infinite on the way."""
    samplers = _FixedLogits(np.array([5.0, 50.0, 45.0], np.float32))

    for fields in ({}, {"top_p": 0.999}, {"min_p": 0.001}, {"top_k": 3}):
        params = SamplingParams(temperature=temperature, **fields)  # type: ignore[arg-type]
        assert set(_draws(samplers.make(params, []), 20)) == {1}


def test_ends_are_possible_once_there_are_enough_tokens() -> None:
    """`min_tokens` forbids the end up to that position, and not at it."""
    samplers = _FixedLogits(np.array([5.0, 1.0, 4.0], np.float32))
    sampler = samplers.make(SamplingParams(temperature=0, min_tokens=3), [])

    assert _draws(sampler, 5) == [2, 2, 2, _END, _END]


def test_llama_cpps_logits_are_left_as_they_are() -> None:
    """Biases and penalties change a copy: the row is read again, for logprobs."""
    logits = _random_logits(5, 20)
    samplers = _FixedLogits(logits.copy())
    params = SamplingParams(logit_bias={3: 5.0}, repetition_penalty=2.0, ignore_eos=True)
    samplers.make(params, [1, 2, 3]).sample(0, 0)

    assert samplers.fixed.tolist() == logits.tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.nan])
@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {}, {"top_p": 0.5}, {"typical_p": 0.5}, {"ignore_eos": True}]
)
@pytest.mark.parametrize("place", [0, 7, 19])
def test_logits_that_are_no_numbers_are_found(
    bad: float, fields: dict[str, Any], place: int
) -> None:
    """NaN and infinity are found wherever they are, and nothing is drawn from them."""
    logits = _random_logits(6, 20)
    logits[place] = bad
    sampler = _FixedLogits(logits).make(SamplingParams(**fields), [])

    with pytest.raises(LogitsNotFinite):
        sampler.sample(0, 0)


def test_logprobs_are_the_models_own() -> None:
    """Logprobs are the raw logits' log-softmax, best first, whatever the parameters are."""
    logits = _random_logits(7, 30)
    exact = logits.astype(np.float64)
    exact -= math.log(np.exp(exact).sum())
    params = SamplingParams(temperature=0.5, top_k=1, logit_bias={3: 5.0})
    logprobs = _FixedLogits(logits).make(params, []).logprobs(0, 3, 4)

    assert (logprobs.drawn.token, logprobs.drawn.text) == (3, b"<3>")
    assert logprobs.drawn.logprob == pytest.approx(exact[3], abs=1e-5)
    best = np.argsort(-exact)[:4].tolist()
    assert [entry.token for entry in logprobs.top] == best
    assert [entry.logprob for entry in logprobs.top] == pytest.approx(exact[best], abs=1e-5)


def test_logprobs_of_the_impossible_are_numbers() -> None:
    """A token of no probability has OpenAI's -9999: JSON knows no infinity."""
    sampler = _FixedLogits(np.array([0.0, -np.inf], np.float32)).make(SamplingParams(), [])

    logprobs = sampler.logprobs(0, 1, 20)

    assert logprobs.drawn.logprob == -9999.0
    assert [entry.token for entry in logprobs.top] == [0, 1]
