"""DRY's penalties are llama.cpp's, without its search through the vocabulary."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kserve_llamacpp.engine.sampling.dry import Dry, _common_ends, _repeats
from kserve_llamacpp.wire.frames import SamplingParams

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


_SIXTEEN_BREAKERS = tuple(f"breaker{number}" for number in range(16))


@pytest.mark.parametrize(
    ("prompt", "allowed"),
    [
        pytest.param([0] * 8192, 2, id="one token, repeated"),
        pytest.param([0] * 8192, 4000, id="a high allowed length"),
        pytest.param([n for at in range(4096) for n in (0, at)], 1, id="thousands of successors"),
    ],
)
def test_no_prompt_makes_a_draw_expensive(prompt: list[int], allowed: int) -> None:
    """Whatever repeats in a window of 8,192 tokens, a draw takes milliseconds, not tenths of one.

    Measured in the time of the thread's own work, the best of three.
    """
    params = SamplingParams(
        dry_multiplier=1.0,
        dry_allowed_length=allowed,
        dry_penalty_last_n=-1,
        dry_sequence_breakers=_SIXTEEN_BREAKERS,
    )
    dry = Dry(params, 8192, [*prompt[1:], prompt[0]], lambda token: b"piece%d" % token)
    seconds = []
    for _ in range(4):  # the first one reads the prompt
        dry.accept(0)
        logits = np.zeros(8192, np.float32)
        began = time.thread_time()
        dry.apply(logits)
        seconds.append(time.thread_time() - began)

    assert logits.min() < 0
    assert min(seconds[1:]) < 0.02


def test_a_request_of_many_choices_is_taken_at_once() -> None:
    """Its prompt is read when the first token is drawn: choices that wait cost next to nothing."""
    params = SamplingParams(dry_multiplier=1.0, dry_penalty_last_n=-1)
    asked: list[int] = []

    def piece(token: int) -> bytes:
        asked.append(token)
        return b"a"

    for _ in range(128):
        Dry(params, 8192, [0] * 8000, piece)

    assert not asked


@given(tokens=st.lists(st.integers(min_value=0, max_value=1), min_size=2, max_size=300))
def test_both_ways_to_find_repetitions_agree(tokens: list[int]) -> None:
    """Many places or few: the lengths are those that a comparison token by token finds."""
    array = np.array(tokens, np.int64)
    expected = []
    for end in range(len(tokens) - 1):
        length = 0
        while length <= end and tokens[end - length] == tokens[-1 - length]:
            length += 1
        expected.append(length)

    assert _common_ends(tokens).tolist() == expected
    assert _repeats(array, 5).tolist() == [min(length, 5) for length in expected]


@given(
    text=st.lists(st.integers(min_value=0, max_value=5), max_size=40),
    place=st.integers(min_value=0, max_value=40),
)
def test_a_prompt_is_read_as_if_token_by_token(text: list[int], place: int) -> None:
    """Breakers and repetitions of a prompt count as those of an answer."""
    params = SamplingParams(
        dry_multiplier=1.0, dry_allowed_length=1, dry_sequence_breakers=("ab", "c", "bdd")
    )

    assert _penalties(params, text, place) == _penalties(params, text, 0)
