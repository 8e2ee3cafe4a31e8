"""DRY: a penalty on the tokens that would go on with a repetition, the longer the higher.

Source: https://github.com/oobabooga/text-generation-webui/pull/5677; the penalties are those of
llama.cpp's sampler. That one looks through the vocabulary for each sequence breaker (0.3 s for one
of 40 letters at 49,152 tokens), which a request could use to stop all others; here breakers are
sought in the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kserve_llamacpp.wire.frames import SamplingParams

_LONGEST = 256  # tokens beyond the allowed length that are counted
_FEW_ENDS = 64  # so many places, compared by so many tokens, are faster with numpy
_FEW_TOKENS = 512
_LOG_OF_GREATEST = 88.7  # of a float32


class Dry:
    """One sequence's repetitions; owner: its sampler.

    Invariant: `_since_breaker` tokens came after the last one in which a breaker ended.
    """

    def __init__(
        self,
        params: SamplingParams,
        max_length: int,
        prompt: list[int],
        piece: Callable[[int], bytes],
    ) -> None:
        """`piece` gives a token's text; the window is `max_length` where it has no bound."""
        window = params.dry_penalty_last_n
        self._window = max_length if window < 0 else min(window, max_length)
        self._multiplier = params.dry_multiplier
        self._base = params.dry_base
        self._allowed = params.dry_allowed_length
        self._breakers = [text.encode() for text in params.dry_sequence_breakers]
        self._longest_breaker = max((len(text) for text in self._breakers), default=1)
        self._piece = piece
        self._tail = b""  # of the text: a breaker may have begun in it
        self._since_breaker = 0
        self._tokens = np.zeros(2 * self._window, np.int64)
        self._size = 0
        self._is_breaker: dict[int, bool] = {}  # by token, as far as it was asked
        penalties = [self._penalty(exponent) for exponent in range(_LONGEST + 1)]
        self._penalties = np.array(penalties, np.float32)
        self._prompt: list[int] | None = prompt

    def accept(self, token: int) -> None:
        """Take note of a token."""
        self._read_prompt()
        if self._size == len(self._tokens):
            self._tokens[: self._window] = self._tokens[-self._window :]
            self._size = self._window
        self._tokens[self._size] = token
        self._size += 1
        self._since_breaker += 1
        text = self._tail + self._piece(token)
        for breaker in self._breakers:  # only those that end in the new token
            if text.find(breaker, max(0, len(self._tail) - len(breaker) + 1)) >= 0:
                self._since_breaker = 0
        self._tail = text[len(text) - min(len(text), self._longest_breaker - 1) :]

    def apply(self, logits: npt.NDArray[np.float32]) -> None:
        """Lower the logits of the tokens that would go on with a repetition, in place."""
        self._read_prompt()
        tokens = self._tokens[max(0, self._size - self._window) : self._size]
        longest = min(len(tokens) - 1, self._since_breaker, self._allowed + _LONGEST)
        if longest < self._allowed:
            return
        lengths = _repeats(tokens, longest)
        ends = np.flatnonzero(lengths >= self._allowed)
        following, places = np.unique(tokens[ends + 1], return_inverse=True)
        exponents = np.zeros(len(following), np.int64)
        np.maximum.at(exponents, places, lengths[ends] - self._allowed)
        is_penalised = [not self._has_breaker(token) for token in following.tolist()]
        logits[following[is_penalised]] -= self._penalties[exponents[is_penalised]]

    def _read_prompt(self) -> None:
        """Take note of the prompt's tokens, once they are needed: it takes some milliseconds.

        Of many requests that come together, most wait at first.
        """
        prompt, self._prompt = self._prompt, None
        if not prompt:
            return
        prompt = prompt[-self._window :]
        self._tokens[: len(prompt)] = prompt
        self._size = len(prompt)
        pieces = [self._piece(token) for token in prompt]
        text = b"".join(pieces)
        found = [(at, breaker) for breaker in self._breakers if (at := text.rfind(breaker)) >= 0]
        last_end = max((at + len(breaker) for at, breaker in found), default=0)
        ends = np.cumsum([len(piece) for piece in pieces])
        after = int(np.searchsorted(ends, last_end)) + 1 if found else 0
        self._since_breaker = len(prompt) - after
        self._tail = text[len(text) - min(len(text), self._longest_breaker - 1) :]

    def _has_breaker(self, token: int) -> bool:
        known = self._is_breaker.get(token)
        if known is None:
            piece = self._piece(token)
            known = self._is_breaker[token] = any(text in piece for text in self._breakers)
        return known

    def _penalty(self, exponent: int) -> float:
        if self._base > 1:
            exponent = min(exponent, int(_LOG_OF_GREATEST / math.log(self._base)))
        return min(self._multiplier * self._base**exponent, float(np.finfo(np.float32).max))


def _repeats(tokens: npt.NDArray[np.int64], longest: int) -> npt.NDArray[np.int64]:
    """Return for each token but the last how long a text that ends there is the text's end, too."""
    lengths = np.zeros(len(tokens) - 1, np.int64)
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])
    if len(ends) > _FEW_ENDS or longest > _FEW_TOKENS:
        return np.minimum(_common_ends(tokens.tolist()), longest)
    length = 1
    while len(ends):
        lengths[ends] = length
        if length == longest:
            break
        ends = ends[ends >= length]
        ends = ends[tokens[ends - length] == tokens[-1 - length]]
        length += 1
    return lengths


def _common_ends(tokens: list[int]) -> npt.NDArray[np.int64]:
    """Return the same without a limit, in a time that grows with the number of tokens alone.

    It is the Z algorithm, read backwards: Gusfield, "Algorithms on Strings, Trees and Sequences".
    """
    text = tokens[::-1]
    size = len(text)
    lengths = [0] * size
    left = right = 0  # the part that agrees with the beginning, and reaches furthest
    for at in range(1, size):
        length = min(right - at, lengths[at - left]) if at < right else 0
        while at + length < size and text[length] == text[at + length]:
            length += 1
        lengths[at] = length
        if at + length > right:
            left, right = at, at + length
    return np.array(lengths[:0:-1], np.int64)
