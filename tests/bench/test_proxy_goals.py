"""From figures to promises that are kept or not."""

from __future__ import annotations

import pytest

from bench.figures import Outcome
from bench.proxy.goals import Goal, goals, goals_table
from bench.proxy.layouts import ANSWERS, OPEN, PACED, START
from bench.proxy.peers import BARE, HAPROXY, LITELLM, RAW
from bench.results import Results, Row
from bench.servers import OURS


def rows(scenario: str, case: str, server: str, figure: str, *values: float) -> list[Row]:
    """A figure of each round, beside which nothing was lost."""
    return [
        Row(scenario, case, server, turn, Outcome({figure: value, "lost": 0}, 1))
        for turn, value in enumerate(values)
    ]


def goal(part: str, *given: list[Row]) -> Goal:
    """The promise whose name has this part."""
    results = Results("a machine", {}, [row for rows in given for row in rows])
    [found] = [goal for goal in goals(results) if part in goal.name]
    return found


def test_nothing_measured_is_no_promise_kept() -> None:
    """Nor one that is broken."""
    results = Results("a machine", {})
    assert {goal.is_met for goal in goals(results)} == {None}
    assert "NO" not in goals_table(results)


@pytest.mark.parametrize(("ours", "is_met"), [(63.0, True), (62.0, False)])
def test_a_rate_beside_the_bare_one(ours: float, is_met: bool) -> None:
    """The ratio is that of the most connections."""
    found = goal(
        f"answers, 16 connections: beside {BARE}",
        rows(ANSWERS, "1 connection", OURS, "requests_per_second", 1.0),
        rows(ANSWERS, "1 connection", BARE, "requests_per_second", 100.0),
        rows(ANSWERS, "16 connections", OURS, "requests_per_second", ours),
        rows(ANSWERS, "16 connections", BARE, "requests_per_second", 100.0),
    )
    assert found.is_met is is_met


def test_a_ratio_is_that_of_each_round() -> None:
    """A machine that is slower in one round is so for both; a round that only one has is left."""
    found = goal(
        f"beside {LITELLM}",
        rows(ANSWERS, "16 connections", OURS, "requests_per_second", 3000.0, 1500.0, 3100.0),
        rows(ANSWERS, "16 connections", LITELLM, "requests_per_second", 100.0, 50.0),
    )
    assert (found.measured, found.is_met) == ("30.00 x", True)


@pytest.mark.parametrize(("ours", "is_met"), [(0.9, True), (1.3, False)])
def test_what_is_added_at_one_connection(ours: float, is_met: bool) -> None:
    """The raw upstream's own time is taken off."""
    found = goal(
        f"p50 above {RAW}",
        rows(ANSWERS, "1 connection", OURS, "p50_ms", ours),
        rows(ANSWERS, "1 connection", RAW, "p50_ms", 0.1),
        rows(ANSWERS, "16 connections", OURS, "p50_ms", 9.0),
        rows(ANSWERS, "16 connections", RAW, "p50_ms", 0.1),
    )
    assert found.is_met is is_met


def paced(*late: float) -> list[list[Row]]:
    cases = [f"{count} streams" for count in (100, 250, 500)]
    ours = [
        rows(PACED, case, OURS, "late_p99_ms", value)
        for case, value in zip(cases, late, strict=True)
    ]
    return [*ours, *(rows(PACED, case, HAPROXY, "late_p99_ms", 2.0) for case in cases)]


def test_lateness_is_beside_haproxy() -> None:
    """At most 50 ms more than haproxy's with the most streams."""
    assert goal("p99 later than", *paced(5.0, 10.0, 51.0)).is_met
    assert goal("p99 later than", *paced(5.0, 10.0, 53.0)).is_met is False
    assert goal("most streams", *paced(5.0, 10.0, 53.0)).measured == "250 streams"


def test_lost_streams_keep_no_promise() -> None:
    """However early the others came."""
    given = paced(5.0, 10.0, 15.0)
    given[2][0].outcome.figures["lost"] = 1
    assert goal("most streams", *given).measured == "250 streams"


@pytest.mark.parametrize(
    ("lost", "most_open", "is_met"), [(0, 2000, True), (1, 2000, False), (0, 1999, False)]
)
def test_all_streams_are_open_at_once_and_none_is_lost(
    lost: int, most_open: int, is_met: bool
) -> None:
    """Streams that came one after another would not show it."""
    figures = {"lost": float(lost), "most_open": float(most_open), "kib_per_stream": 40.0}
    row = Row(OPEN, "2000 streams", OURS, 0, Outcome(figures, 2000))
    assert goal("2000 streams: lost", [row]).is_met is is_met
    assert goal("memory of a stream", [row]).measured == "40.0 KiB"


def test_memory_is_promised_in_megabytes() -> None:
    """Not in MiB, which are larger: 77 of them are 81 MB."""
    found = goal("idle RSS", rows(START, "1 process", OURS, "rss_mib", 77.0))
    assert (found.measured, found.is_met) == ("81 MB", False)


def test_the_start() -> None:
    """Below a second, over the rounds."""
    found = goal("start to", rows(START, "1 process", OURS, "start_ms", 1200.0, 800.0, 900.0))
    assert (found.measured, found.is_met) == ("900 (800-1200) ms", True)
