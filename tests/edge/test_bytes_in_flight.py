"""The budget of bytes in flight: what fits, what it keeps free, what it is by default."""

from __future__ import annotations

import json

import pytest
from pydantic_core import from_json

from http_edge.bytes_in_flight import (
    COST_PER_BYTE,
    MIB,
    SMALL_COST,
    ByteBudget,
    Lease,
    cost_of,
    default_capacity,
    least_capacity,
)


def test_what_does_not_fit_is_not_taken() -> None:
    """A request that asks for too much gets nothing of it, and keeps what it had."""
    budget = ByteBudget(8 * MIB)
    first, second = Lease(budget), Lease(budget)
    assert first.take(4 * MIB)
    assert second.take(MIB)
    assert not second.take(2 * MIB)
    assert (second.held, budget.used) == (MIB, 5 * MIB)
    first.release()
    assert second.take(2 * MIB)
    assert budget.used == 3 * MIB


def test_large_ones_leave_room_for_small_ones() -> None:
    """The last quarter is for small requests: a few large ones do not keep them out."""
    budget = ByteBudget(8 * MIB)
    assert Lease(budget).take(4 * MIB)
    assert Lease(budget).take(2 * MIB)
    assert not Lease(budget).take(SMALL_COST + 1)
    small = [Lease(budget) for _ in range(8)]
    assert all(lease.take(SMALL_COST) for lease in small)
    assert not Lease(budget).take(1)


def test_without_other_large_ones_all_fits() -> None:
    """What costs more than there is counts as half of it, and comes in beside small ones."""
    budget = ByteBudget(8 * MIB)
    small = Lease(budget)
    assert small.take(SMALL_COST)
    lease = Lease(budget)
    assert lease.take(3 * MIB)
    assert lease.take(100 * MIB)
    assert lease.held == 4 * MIB
    assert not Lease(budget).take(100 * MIB)
    assert Lease(budget).take(MIB)


def test_what_is_there_is_charged_beyond_the_capacity() -> None:
    """Bytes that cannot be refused count, and keep others out until they are gone."""
    budget = ByteBudget(MIB)
    answer, request = Lease(budget), Lease(budget)
    answer.charge(2 * MIB)
    assert not request.take(1)
    answer.release()
    answer.release()
    assert request.take(1)
    assert budget.used == 1


def test_values_cost_more_than_bytes() -> None:
    """A list of numbers costs what its objects take, a text of the same length much less."""
    text = json.dumps("a" * 60_000).encode()
    numbers = json.dumps([1000] * 10_000).encode()
    assert cost_of(text) == COST_PER_BYTE * len(text)
    assert cost_of(numbers) > 10_000 * (8 + 32)  # a pointer and an int
    assert len(from_json(numbers)) == 10_000


@pytest.mark.parametrize("max_body_bytes", [1, 8 * MIB, 100 * MIB])
def test_the_largest_body_fits_the_least_budget(max_body_bytes: int) -> None:
    """However little memory there is, a body of the largest size can come in."""
    budget = ByteBudget(default_capacity(max_body_bytes, 0.25, 0))
    assert budget.capacity == least_capacity(max_body_bytes)
    assert budget.fits(COST_PER_BYTE * max_body_bytes)


def test_the_default_follows_the_memory() -> None:
    """A share of what is available; something usable where that is not known."""
    assert default_capacity(MIB, 0.25, 4096 * MIB) == 1024 * MIB
    assert default_capacity(MIB, 0.25, None) == 256 * MIB
