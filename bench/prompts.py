"""Texts to ask for: seeded, so that a run can be repeated, and none twice within a run."""

from __future__ import annotations

import random

_VOCABULARY = """
river stone garden window letter winter bridge engine copper market island forest candle harbour
mirror pencil silver thunder village yellow orange table paper water summer train street doctor
teacher kitchen morning evening music picture flower animal mountain valley ocean desert planet
rocket signal number circle square metal wooden glass cotton sugar coffee bread butter apple
cherry lemon tiger horse rabbit eagle turtle
"""
_WORDS = _VOCABULARY.split()


class Prompts:
    """Gives a new text each time; owner: one run of the benchmark."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._number = 0

    def text(self, num_words: int) -> str:
        """Return about `num_words` words, from the first one on unlike any before."""
        self._number += 1
        draw = random.Random(f"{self._seed}:{self._number}")  # noqa: S311 - no secret
        words = draw.choices(_WORDS, k=num_words)
        return f"{' '.join(words)}. Continue story {self._number}."
