"""How much host memory an engine takes for cached prefixes, where it was told how much."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine.worker import bounded

_MIB = 1 << 20


@pytest.mark.parametrize(
    ("asked", "available", "given"),
    [
        (None, 100 * _MIB, None),
        (0, 0, 0),
        (100, None, 100),
        (100, 100 * _MIB, 100),
        (101, 100 * _MIB, 100),
    ],
)
def test_no_more_than_is_left(asked: int | None, available: int | None, given: int | None) -> None:
    """What was asked for is given, up to what the loaded model has left."""
    assert bounded(asked, available) == given
