"""Penalties on seen tokens: those of OpenAI and vLLM, whatever order the tokens came in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_llamacpp.engine.sampling.penalties import Penalties, TokenCounts
from kserve_llamacpp.wire.frames import SamplingParams

_N_VOCAB = 12
_tokens = st.lists(st.integers(min_value=0, max_value=_N_VOCAB - 1), max_size=200)


@given(output=_tokens)
def test_counts_are_those_of_a_counter(output: list[int]) -> None:
    """Each token stands once among the ids, with how often it came."""
    counts = TokenCounts()
    for token in output:
        counts.add(token)

    found = dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))
    assert found == Counter(output)


def test_counts_grow_with_what_is_seen() -> None:
    """More distinct tokens than there was room for are all kept."""
    counts = TokenCounts()
    for token in range(1000):
        counts.add(token)

    assert counts.ids.tolist() == list(range(1000))
    assert set(counts.counts.tolist()) == {1.0}


@given(
    prompt=_tokens,
    output=_tokens,
    repetition=st.sampled_from([0.5, 1.0, 1.5]),
    presence=st.sampled_from([-1.0, 0.0, 0.5]),
    frequency=st.sampled_from([-0.25, 0.0, 1.0]),
)
def test_penalties_are_the_definition(
    prompt: list[int], output: list[int], repetition: float, presence: float, frequency: float
) -> None:
    """Seen logits are divided or multiplied; written ones lose presence, and frequency a time."""
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    penalties = Penalties(params, prompt)
    for token in output:
        penalties.accept(token)
    before = np.linspace(-3, 3, _N_VOCAB, dtype=np.float32)
    logits = before.copy()
    penalties.apply(logits)

    for token, logit in enumerate(before.tolist()):
        expected = logit
        if token in prompt + output:
            expected = logit * repetition if logit <= 0 else logit / repetition
        if token in output:
            expected -= presence + frequency * output.count(token)
        assert logits[token] == pytest.approx(expected, abs=1e-5)


def test_what_was_forbidden_stays_forbidden() -> None:
    """A logit of minus infinity is not raised by any penalty."""
    penalties = Penalties(SamplingParams(repetition_penalty=1.5, presence_penalty=-2.0), [0])
    penalties.accept(0)
    logits = np.array([-np.inf, 1.0], np.float32)
    penalties.apply(logits)

    assert logits.tolist() == [-np.inf, 1.0]


def test_a_tiny_penalty_makes_nothing_infinite() -> None:
    """A client's parameter is no reason to find that the model has failed."""
    penalties = Penalties(SamplingParams(repetition_penalty=1e-38), [0, 1])
    logits = np.array([5.0, -5.0, 1.0], np.float32)
    penalties.apply(logits)

    assert np.isfinite(logits).all()
    assert logits.argmax() == 0


class _CountedPrompt(list[int]):
    """A prompt that tells how often it was read."""

    num_reads = 0

    def __iter__(self) -> Iterator[int]:
        self.num_reads += 1
        return super().__iter__()


def test_a_prompt_is_read_once_and_late() -> None:
    """A sampler that waits has read nothing; one that draws has read the prompt once."""
    prompt = _CountedPrompt([1, 2, 3])
    penalties = Penalties(SamplingParams(repetition_penalty=1.5), prompt)
    penalties.accept(4)
    assert prompt.num_reads == 0

    for token in range(5, 9):
        logits = np.ones(_N_VOCAB, np.float32)
        penalties.apply(logits)
        penalties.accept(token)

    assert prompt.num_reads == 1
    assert np.flatnonzero(logits < 1).tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_neutral_penalties_are_known() -> None:
    """Without a penalty nothing needs to be copied."""
    assert Penalties(SamplingParams(), [1]).is_neutral
    assert not Penalties(SamplingParams(frequency_penalty=0.1), []).is_neutral
    assert not Penalties(SamplingParams(repetition_penalty=1.1), []).is_neutral
