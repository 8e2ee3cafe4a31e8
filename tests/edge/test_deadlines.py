"""When a client is too slow, by times and counts alone."""

from __future__ import annotations

import pytest

from http_edge.bounds import Bounds, max_connections
from http_edge.deadlines import Progress


def test_enough_in_each_stretch_is_no_miss() -> None:
    """Who moves the least in every stretch goes on for ever."""
    progress = Progress()
    assert not any(progress.is_missed(now, now * 10, 5, 50) for now in range(1000))


def test_credit_is_not_kept() -> None:
    """Much in one stretch does not help in the next."""
    progress = Progress()
    assert not progress.is_missed(0, 0, 5, 50)
    assert not progress.is_missed(5, 1_000_000, 5, 50)
    assert not progress.is_missed(9.9, 1_000_049, 5, 50)
    assert progress.is_missed(10, 1_000_049, 5, 50)


def test_a_stretch_that_is_stopped_begins_anew() -> None:
    """Time in which nothing is to move does not count."""
    progress = Progress()
    assert not progress.is_missed(0, 0, 5, 50)
    progress.stop()
    assert not progress.is_missed(100, 0, 5, 50)
    assert not progress.is_missed(104, 0, 5, 50)
    assert progress.is_missed(105, 0, 5, 50)


def test_without_a_rate_something_must_move() -> None:
    """A least rate of 0 is no leave to stop."""
    bounds = Bounds(min_bytes_per_second=0)
    assert bounds.least_bytes(30) == 1
    assert Bounds(min_bytes_per_second=1024).least_bytes(30) == 30 * 1024


@pytest.mark.parametrize(
    ("num_files", "expected"), [(1024, 448), (100, 16), (10**6, 16384), (-1, 16384)]
)
def test_connections_fit_the_open_files(num_files: int, expected: int) -> None:
    """Each connection of a client has one to an upstream beside it, and others need files, too."""
    assert max_connections(None, num_files=num_files) == expected


def test_connections_fit_the_memory() -> None:
    """A quarter of the memory is for connections, which cost more with TLS."""
    assert max_connections(256 << 20, num_files=10**6) == 8192
    assert max_connections(256 << 20, num_files=10**6, is_secure=True) == 1024
