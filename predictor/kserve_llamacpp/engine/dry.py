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

from kserve_llamacpp.engine.frames import SamplingParams

_LONGEST = 256  # tokens of a repetition that are counted: a draw's cost is bounded by it
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
        for token in prompt[-self._window :]:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take note of a token."""
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
        tokens = self._tokens[max(0, self._size - self._window) : self._size]
        longest = min(len(tokens) - 1, self._since_breaker, self._allowed + _LONGEST)
        if longest < self._allowed:
            return
        lengths = _repeats(tokens, longest)
        ends = np.flatnonzero(lengths >= self._allowed)
        for token in np.unique(tokens[ends + 1]).tolist():
            length = int(lengths[ends[tokens[ends + 1] == token]].max())
            if not any(breaker in self._piece(token) for breaker in self._breakers):
                logits[token] -= self._penalty(length - self._allowed)

    def _penalty(self, exponent: int) -> float:
        if self._base > 1:
            exponent = min(exponent, int(_LOG_OF_GREATEST / math.log(self._base)))
        return min(self._multiplier * self._base**exponent, float(np.finfo(np.float32).max))


def _repeats(tokens: npt.NDArray[np.int64], longest: int) -> npt.NDArray[np.int64]:
    """Return for each token but the last how long a text that ends there is the text's end, too."""
    lengths = np.zeros(len(tokens) - 1, np.int64)
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])
    length = 1
    while len(ends):
        lengths[ends] = length
        if length == longest:
            break
        ends = ends[ends >= length]
        ends = ends[tokens[ends - length] == tokens[-1 - length]]
        length += 1
    return lengths
