"""When a refused request may come back."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine_client.service_rate import ServiceRate


def _ends_every(seconds: float, count: int = 100) -> tuple[ServiceRate, float]:
    rate = ServiceRate()
    rate.began(0.0)
    for at in range(1, count + 1):
        rate.ended(at * seconds)
    return rate, count * seconds


@pytest.mark.parametrize(
    ("interval", "num_before", "seconds"),
    [(0.5, 10, 5.0), (0.5, 11, 6.0), (0.01, 1, 1.0), (3.0, 100, 60.0)],
)
def test_it_is_the_time_until_those_before_have_ended(
    interval: float, num_before: int, seconds: float
) -> None:
    """Whole seconds, rounded up, at least 1 and at most 60."""
    rate, now = _ends_every(interval)

    assert rate.retry_after_seconds(num_before, now) == seconds


def test_where_nothing_is_known_it_is_a_second() -> None:
    """Before anything has ended nobody knows how fast the queue drains."""
    rate = ServiceRate()
    rate.began(0.0)

    assert rate.retry_after_seconds(100, 50.0) == 1.0


def test_several_ends_at_once_count_as_several() -> None:
    """A step in which eight end is as good as eight ends one after another."""
    rate = ServiceRate()
    rate.began(0.0)
    for at in range(1, 100):
        for _ in range(8):
            rate.ended(at * 8.0)

    assert rate.retry_after_seconds(10, 792.0) == pytest.approx(10, abs=4)


def test_times_without_work_do_not_count() -> None:
    """After an idle hour the first end tells of the work, not of the hour."""
    rate, now = _ends_every(0.5)
    rate.began(now + 3600)
    rate.ended(now + 3600.5)

    assert rate.retry_after_seconds(10, now + 3600.5) == 5.0


def test_a_standstill_counts_before_it_ends() -> None:
    """While nothing ends for long, the answer grows."""
    rate, now = _ends_every(0.5)

    assert rate.retry_after_seconds(10, now + 20) == 25.0


def test_the_newest_ends_count_most() -> None:
    """When requests get slower the answer follows within a few dozen ends."""
    rate, now = _ends_every(0.1)
    for _ in range(50):
        now += 2.0
        rate.ended(now)

    assert rate.retry_after_seconds(10, now) == 20.0
