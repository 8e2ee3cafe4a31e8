"""What the proxy promises of its speed and size, held against what was measured in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.proxy.layouts import ANSWERS, CHUNKS, OPEN, PACED, START
from bench.proxy.peers import BARE, HAPROXY, LITELLM, RAW
from bench.proxy.runner import streams
from bench.results import Results
from bench.servers import OURS

LATER_THAN_HAPROXY_MS = 50.0
_Compare = Callable[[float, float], float]


@dataclass(frozen=True)
class Goal:
    """A promise, what was measured of it, and whether it is kept; None: not all was measured."""

    name: str
    wanted: str
    measured: str
    is_met: bool | None


@dataclass(frozen=True)
class _Found:
    """A figure of each round: its median, its extremes."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, digits: int, unit: str) -> str:
        low, high = min(self.values), max(self.values)
        spread = f" ({low:.{digits}f}-{high:.{digits}f})" if high > low else ""
        return f"{self.median:.{digits}f}{spread}{unit}"


def goals(results: Results) -> list[Goal]:
    """Return all promises; ratios and differences are those of each round, then their median."""
    many = _last_case(results, ANSWERS)
    one = _first_case(results, ANSWERS)
    chunks = _last_case(results, CHUNKS)
    rate = "requests_per_second"
    return [
        _at_least(f"answers, {many}: beside {BARE}", 0.63, _of(results, ANSWERS, many, rate, BARE)),
        _at_least(
            f"answers, {many}: beside {LITELLM}", 30, _of(results, ANSWERS, many, rate, LITELLM)
        ),
        _at_most(
            f"answers, {one}: p50 above {RAW}",
            1.0,
            _of(results, ANSWERS, one, "p50_ms", RAW, _minus),
            " ms",
            digits=2,
        ),
        _at_least(
            f"streams, {chunks}: beside {BARE}", 0.6, _of(results, CHUNKS, chunks, rate, BARE)
        ),
        *_paced(results),
        *_open(results),
        _at_most(
            "idle RSS", 80.0, _alone(results, START, "rss_mib"), " MB", digits=0, per=1.048576
        ),
        _at_most("start to first answer", 1000.0, _alone(results, START, "start_ms"), " ms"),
    ]


def goals_table(results: Results) -> str:
    """Return the promises as plain text, a line for each."""
    rows = [("promise", "wanted", "measured", "kept")]
    for goal in goals(results):
        kept = {True: "yes", False: "NO", None: "-"}[goal.is_met]
        rows.append((goal.name, goal.wanted, goal.measured, kept))
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(["What is promised", *lines])


def _paced(results: Results) -> list[Goal]:
    cases = _cases(results, PACED)
    later = {case: _of(results, PACED, case, "late_p99_ms", HAPROXY, _minus) for case in cases}
    kept = [
        case
        for case, found in later.items()
        if found
        and found.median <= LATER_THAN_HAPROXY_MS
        and not sum(_alone_in(results, PACED, case, "lost").values())
    ]
    last = cases[-1] if cases else "streams"
    goal = _at_most(
        f"paced, {last}: p99 later than {HAPROXY}",
        LATER_THAN_HAPROXY_MS,
        later.get(last),
        " ms",
        digits=1,
    )
    highest = Goal("paced: most streams that keep it", "-", kept[-1] if kept else "-", None)
    return [goal, highest]


def _open(results: Results) -> list[Goal]:
    case = _last_case(results, OPEN)
    lost = _alone_in(results, OPEN, case, "lost")
    most = _alone_in(results, OPEN, case, "most_open")
    memory = _alone(results, OPEN, "kib_per_stream")
    is_met = None
    measured = "-"
    if lost and most:
        measured = f"{sum(lost.values()):.0f} lost, {min(most.values()):.0f} open at once"
        is_met = not sum(lost.values()) and streams(int(min(most.values()))) == case
    return [
        Goal(f"open, {case}: lost", "0", measured, is_met),
        Goal("open: memory of a stream", "stated", memory.text(1, " KiB") if memory else "-", None),
    ]


def _at_least(name: str, least: float, found: _Found | None) -> Goal:
    if found is None:
        return Goal(name, f">= {least:g} x", "-", None)
    return Goal(name, f">= {least:g} x", found.text(2, " x"), found.median >= least)


def _at_most(
    name: str,
    most: float,
    found: _Found | None,
    unit: str,
    digits: int = 0,
    per: float = 1.0,
) -> Goal:
    """`per` turns the measured unit into that of the promise."""
    wanted = f"<= {most:g}{unit}"
    if found is None:
        return Goal(name, wanted, "-", None)
    found = _Found([value * per for value in found.values])
    return Goal(name, wanted, found.text(digits, unit), found.median <= most)


def _of(
    results: Results,
    scenario: str,
    case: str,
    figure: str,
    peer: str,
    compare: _Compare = lambda one, other: one / other if other else 0.0,
) -> _Found | None:
    """Return ours compared with a peer's, of the rounds that have both."""
    one = _rounds(results, scenario, case, OURS, figure)
    other = _rounds(results, scenario, case, peer, figure)
    values = [compare(value, other[turn]) for turn, value in one.items() if turn in other]
    return _Found(values) if values else None


def _minus(one: float, other: float) -> float:
    return one - other


def _alone(results: Results, scenario: str, figure: str) -> _Found | None:
    values = _alone_in(results, scenario, _last_case(results, scenario), figure)
    return _Found(list(values.values())) if values else None


def _alone_in(results: Results, scenario: str, case: str, figure: str) -> dict[int, float]:
    return _rounds(results, scenario, case, OURS, figure)


def _rounds(
    results: Results, scenario: str, case: str, server: str, figure: str
) -> dict[int, float]:
    return {
        row.round: row.outcome.figures[figure]
        for row in results.rows
        if (row.scenario, row.case, row.server) == (scenario, case, server)
        and figure in row.outcome.figures
    }


def _cases(results: Results, scenario: str) -> list[str]:
    return list(dict.fromkeys(row.case for row in results.rows if row.scenario == scenario))


def _first_case(results: Results, scenario: str) -> str:
    return next(iter(_cases(results, scenario)), scenario)


def _last_case(results: Results, scenario: str) -> str:
    return next(reversed(_cases(results, scenario)), scenario)
