"""When an engine's silence is a hang."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine_client.watchdog import Watchdog


def _hangs_after(watchdog: Watchdog, has_work: bool = True, begin: float = 0.0) -> float | None:
    """Return after how many seconds of silence a hang is told, None for a thousand."""
    now = begin
    watchdog.silence(now, has_work)
    while now < begin + 1000:
        now += 0.5
        if (silent := watchdog.silence(now, has_work)) is not None:
            assert silent == now - begin
            return silent
    return None


def _loaded(*steps: tuple[float, int], min_seconds: float = 30.0, batch: int = 1) -> Watchdog:
    watchdog = Watchdog(min_seconds, batch)
    watchdog.started()
    watchdog.loaded()
    for seconds, tokens in steps:
        watchdog.stepped(seconds, tokens)
    return watchdog


@pytest.mark.parametrize(
    ("steps", "batch", "limit"),
    [
        ([(0.1, 8)], 1, 30.0),
        ([(0.1, 8), (2.0, 8), (0.1, 8)], 1, 40.0),
        ([(0.1, 1)], 512, 102.4),
        ([(2.0, 1), (0.1, 1)], 512, 102.4),
        ([(5.0, 512)], 512, 100.0),
    ],
)
def test_the_limit_follows_the_slowest_step(
    steps: list[tuple[float, int]], batch: int, limit: float
) -> None:
    """Never under the setting, 20 times the slowest step, and room for a whole batch.

    One slow token says little of the pace of many: the best pace counts.
    """
    assert _hangs_after(_loaded(*steps, batch=batch)) == pytest.approx(limit, abs=0.51)


def test_until_a_step_was_measured_the_limit_is_long() -> None:
    """Nobody knows how long a machine's first step takes: it has 20 times the setting."""
    assert _hangs_after(_loaded()) == 600.5


def test_an_idle_engine_may_be_silent() -> None:
    """An engine without work has nothing to tell, and its silence counts from its next work."""
    watchdog = _loaded((0.1, 1))

    assert _hangs_after(watchdog, has_work=False) is None
    assert _hangs_after(watchdog, begin=1000) == 30.5


def test_every_step_is_a_sign_of_life() -> None:
    """A step ends the silence, also one that computed nothing."""
    watchdog = _loaded((0.1, 1))
    for second in range(100):
        assert watchdog.silence(second, has_work=True) is None
        if second % 20 == 0:
            watchdog.stepped(0.0, 0)


def test_a_process_that_has_told_nothing_is_let_alone() -> None:
    """Before its first report a new process has no limit, whatever was measured before."""
    watchdog = _loaded((0.1, 1))
    watchdog.started()

    assert _hangs_after(watchdog) is None


def test_a_load_that_stands_still_is_a_hang() -> None:
    """Loading has 20 times the setting from one sign of progress to the next, with or without work.

    What was measured of an earlier engine's steps does not shorten it.
    """
    watchdog = _loaded((0.1, 1))
    watchdog.started()
    watchdog.loading()

    assert _hangs_after(watchdog, has_work=False) == 600.5


def test_a_hang_is_told_once() -> None:
    """After it was told nothing is told of this engine; the next one is watched again."""
    watchdog = _loaded((0.1, 1))
    assert _hangs_after(watchdog) is not None

    assert _hangs_after(watchdog, begin=1000) is None
    watchdog.started()
    watchdog.loaded()
    assert _hangs_after(watchdog, begin=2000) == 30.5


def test_a_pause_of_the_server_is_not_the_engines() -> None:
    """A gap in the server's own time counts as a second: the reports may lie there unread."""
    watchdog = _loaded((0.1, 1))
    watchdog.silence(0, has_work=True)

    assert watchdog.silence(500, has_work=True) is None
    watchdog.stepped(0.1, 1)
    assert watchdog.silence(501, has_work=True) is None


def test_zero_switches_it_off() -> None:
    """A setting of 0 never finds a hang."""
    assert _hangs_after(_loaded((0.1, 1), min_seconds=0)) is None
