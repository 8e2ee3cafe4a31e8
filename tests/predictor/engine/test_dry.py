"""DRY's penalties are llama.cpp's, without its search through the vocabulary."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kserve_llamacpp.engine.dry import Dry
from kserve_llamacpp.engine.frames import SamplingParams

llama: Any = llama_cpp

_N_VOCAB = 6
_LETTERS = [letter.encode() for letter in "abcdef"]


def _penalties(params: SamplingParams, tokens: list[int], prompt_length: int = 0) -> list[float]:
    """Return how much each logit is lowered after these tokens."""
    dry = Dry(params, 64, tokens[:prompt_length], _LETTERS.__getitem__)
    for token in tokens[prompt_length:]:
        dry.accept(token)
    logits = np.zeros(_N_VOCAB, np.float32)
    dry.apply(logits)
    return [-logit + 0.0 for logit in logits.tolist()]


def _llama_cpps(params: SamplingParams, tokens: list[int]) -> list[float]:
    """Return the same of llama.cpp's own sampler, which has no breakers here."""
    last_n = 64 if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n
    sampler = llama.llama_sampler_init_dry(
        None, params.dry_multiplier, params.dry_base, params.dry_allowed_length, last_n, None, 0
    )
    for token in tokens:
        llama.llama_sampler_accept(sampler, token)
    data = (llama.llama_token_data * _N_VOCAB)(
        *(llama.llama_token_data(token, 0.0, 0.0) for token in range(_N_VOCAB))
    )
    array = llama.llama_token_data_array(data, _N_VOCAB, -1, False)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    llama.llama_sampler_free(sampler)
    return [-float(item.logit) + 0.0 for item in data]


_tokens = st.lists(st.integers(min_value=0, max_value=3), max_size=100)


@given(
    tokens=_tokens,
    place=st.integers(min_value=0, max_value=100),
    last_n=st.sampled_from([-1, 1, 2, 3, 7, 20, 64]),
    allowed=st.integers(min_value=1, max_value=4),
    base=st.sampled_from([1.0, 1.75, 4.0]),
)
@example(tokens=[0] * 70, place=3, last_n=-1, allowed=2, base=4.0)
@example(tokens=[0, 1, 2, 0, 1], place=0, last_n=64, allowed=2, base=1.75)
def test_penalties_are_llama_cpps(
    tokens: list[int], place: int, last_n: int, allowed: int, base: float
) -> None:
    """After any tokens, of prompt or output, each logit is lowered as llama.cpp lowers it."""
    params = SamplingParams(
        dry_multiplier=0.5,
        dry_base=base,
        dry_allowed_length=allowed,
        dry_penalty_last_n=last_n,
        dry_sequence_breakers=(),
    )

    found = _penalties(params, tokens, place)

    assert found == pytest.approx(_llama_cpps(params, tokens), rel=1e-5)


@pytest.mark.parametrize(
    ("breakers", "text", "penalised"),
    [
        ((), "abcdabc", "d"),
        (("c",), "abcdabc", ""),
        (("b",), "abcdabc", ""),
        (("e",), "abcdabc", "d"),
        (("bc",), "abcdabc", ""),
        (("ca",), "abcdabc", "d"),
        (("a",), "abcdabc", "d"),
        (("a",), "aabcdabc", "d"),
        (("xy", "a"), "abcdabc", "d"),
        (("d",), "abcdabc", ""),
        (("da",), "abcdabc", "d"),
        (("dab",), "abcdabc", ""),
    ],
)
def test_a_breaker_begins_anew(breakers: tuple[str, ...], text: str, penalised: str) -> None:
    """What came before a breaker is no repetition, and a breaker itself is never penalised.

    A breaker may be made of several tokens; two tokens must follow it to be a repetition.
    """
    params = SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=breakers)
    tokens = [_LETTERS.index(letter.encode()) for letter in text]

    found = _penalties(params, tokens)

    assert [token for token, penalty in enumerate(found) if penalty] == [
        _LETTERS.index(letter.encode()) for letter in penalised
    ]


def test_a_breaker_may_cut_a_character() -> None:
    """A breaker of several bytes is found though its bytes are of different tokens."""
    pieces = ["€".encode()[:1], "€".encode()[1:], b"a", b"b"]
    params = SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=("€",))
    after = []
    for text in ([2, 3, 0, 1, 2], [2, 3, 2, 3, 2], [2, 3, 0, 2, 3, 2, 3, 0, 1]):
        dry = Dry(params, 64, text, pieces.__getitem__)
        logits = np.zeros(4, np.float32)
        dry.apply(logits)
        after.append(np.flatnonzero(logits).tolist())

    assert after == [[], [3], []]


def test_a_long_window_costs_a_bounded_time() -> None:
    """A repetition of thousands of tokens is counted up to a limit, and still penalised."""
    params = SamplingParams(dry_multiplier=1.0, dry_base=1.01, dry_penalty_last_n=-1)
    dry = Dry(params, 8192, [0] * 8192, _LETTERS.__getitem__)
    logits = np.zeros(_N_VOCAB, np.float32)
    dry.apply(logits)

    assert -logits[0] == pytest.approx(1.01**256, rel=1e-4)
