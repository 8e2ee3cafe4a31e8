"""How many cells are chosen for the memory that there is."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine.llama.library import LoadFailed
from kserve_llamacpp.engine.llama.sizing import Memory, choose_n_ctx

_RESERVE = (256 + 16) << 20


def _memory(num_cells: int | None, per_cell: int = 1024) -> Memory:
    """Memory with room for so many cells beside the weights and the reserve."""
    available = None if num_cells is None else 1000 + _RESERVE + num_cells * per_cell
    return Memory(weights=1000, per_cell=per_cell, available=available)


@pytest.mark.parametrize(
    ("most_useful", "room", "num_parts", "n_ctx"),
    [
        (100_000, None, 1, 16384),
        (1000, None, 1, 1024),  # as llama.cpp rounds
        (100_000, 16383, 1, 8192),
        (100_000, 600, 1, 512),
        (100_000, None, 100, 25600),  # not less than 256 for each
        (100_000, 25600, 100, 25600),
        (100_000, 9000, 3, 8448),  # 16896, in blocks, and its half
    ],
)
def test_what_is_useful_and_fits_is_taken(
    most_useful: int, room: int | None, num_parts: int, n_ctx: int
) -> None:
    """Left to itself it takes what llama.cpp will allocate, never more than fits."""
    assert choose_n_ctx(0, most_useful, _memory(room), num_parts) == n_ctx


@pytest.mark.parametrize(
    ("asked", "room", "num_parts", "mend"),
    [
        (4096, 4095, 1, "lower --n_ctx to 4095 or less, or give the container more memory"),
        (0, 511, 1, "give the container more memory, or choose a smaller model"),
        (0, 20000, 100, "lower --max_sequences, or give the container more memory"),
    ],
)
def test_what_does_not_fit_is_refused(asked: int, room: int, num_parts: int, mend: str) -> None:
    """The message says what would fit."""
    with pytest.raises(LoadFailed, match=mend):
        choose_n_ctx(asked, 100_000, _memory(room), num_parts)


def test_the_tokenizers_process_has_the_vocabulary_too() -> None:
    """Of 262,000 tokens it takes 150 MB: what remains is not promised to cells twice."""
    small = Memory(weights=1000, per_cell=16384, available=1 << 30)
    large = Memory(weights=1000, per_cell=16384, available=1 << 30, n_vocab=262_144)
    assert small.room is not None
    assert large.room is not None
    assert small.room - large.room == 128 << 20
    with pytest.raises(LoadFailed, match=r"only 1\.00 GiB are available"):
        choose_n_ctx(45_000, 100_000, large)
    assert choose_n_ctx(45_000, 100_000, small) == 45_000
