"""Texts that hurt: long runs and odd shapes, of which some end a pre-tokenizer that recurses."""

from __future__ import annotations

import random
from collections.abc import Callable

SHAPES: dict[str, Callable[[int], str]] = {
    "capitals": lambda size: "A" * size,
    "letters": lambda size: "a" * size,
    "capital after capital": lambda size: "Aa" * (size // 2),
    "digits": lambda size: "7" * size,
    "spaces": lambda size: " " * size,
    "newlines": lambda size: "\n" * size,
    "spaces and newlines": lambda size: " \n" * (size // 2),
    "tabs": lambda size: "\t" * size,
    "marks": lambda size: "!" * size,
    "apostrophes": lambda size: "'s" * (size // 2),
    "accents": lambda size: "é" * size,
    "combining": lambda size: "a" + "\u0301" * (size - 1),
    "ideographs": lambda size: "\u6f22" * size,
    "kana": lambda size: "\u304b" * size,
    "emojis": lambda size: "\U0001f98a" * size,
    "zero width": lambda size: "\u200b" * size,
    "no-break spaces": lambda size: "\u00a0" * size,
    "nulls": lambda size: "\0" * size,
    "specials": lambda size: "<|im_start|>" * (size // 12),
    "half specials": lambda size: "<|im_" * (size // 5),
    "any": lambda size: "".join(chr(_any_point(_RNG)) for _ in range(size)),
}
_RNG = random.Random(13)


def words(size: int, seed: int = 1) -> str:
    """Return prose-like text of about so many characters."""
    rng = random.Random(seed)
    found: list[str] = []
    length = 0
    while length < size:
        word = "".join(rng.choice("etaoinshrdlu") for _ in range(rng.randint(2, 9)))
        found.append(word)
        length += len(word) + 1
    return " ".join(found)[:size]


def _any_point(rng: random.Random) -> int:
    while True:
        point = rng.randrange(1, 0x110000)
        if not 0xD800 <= point < 0xE000:
            return point
