"""How many cells llama.cpp makes of those it is asked for."""

from __future__ import annotations

BLOCK = 256  # it gives a sequence, or all that share, a multiple of so many


def whole_parts(num_tokens: int, num_parts: int) -> int:
    """Return what llama.cpp makes of so many cells, divided among sequences."""
    return num_parts * whole_blocks(num_tokens // num_parts)


def whole_blocks(num_tokens: int) -> int:
    """Return what llama.cpp makes of so many cells.

    It must be told the same: a batch may have as many rows as there were cells before it rounds.
    """
    return -(-num_tokens // BLOCK) * BLOCK
