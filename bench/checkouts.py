"""This commit beside an older one: whose code a server runs, and what must hold between the two."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.results import Results
from bench.servers import ServerFailed

NEW, OLD = "this commit", "the old commit"
_DISTRIBUTIONS = ("protocol", "edge", "predictor", "proxy")  # an old checkout may lack one
ROOT = Path(__file__).parents[1]
MOST_CPU = 1.05
LEAST_RATE = 0.97


def environment(root: Path) -> dict[str, str]:
    """Return the variable by which a server runs the code of a checkout.

    Raises ServerFailed for a folder that is none.
    """
    folders = [root / name for name in _DISTRIBUTIONS if (root / name).is_dir()]
    if not {root / "predictor", root / "proxy"} <= set(folders):
        raise ServerFailed(
            f"--old {root} is no checkout of this project: it has no predictor/ and proxy/ "
            "(git worktree add --detach FOLDER COMMIT makes one)"
        )
    return {"PYTHONPATH": os.pathsep.join(str(folder.resolve()) for folder in folders)}


@dataclass(frozen=True)
class Promise:
    """A figure of this commit beside that of the old one, of each round: a bound on the median.

    One of `at_most` and `at_least` is given, as a ratio.
    """

    scenario: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def wanted(self) -> str:
        """How the bound is written in the table."""
        return f"<= {self.at_most:g} x" if self.at_most is not None else f">= {self.at_least:g} x"

    def is_kept(self, ratio: float) -> bool:
        """Tell whether a ratio is within the bound."""
        if self.at_most is not None:
            return ratio <= self.at_most
        return self.at_least is None or ratio >= self.at_least


@dataclass(frozen=True)
class Comparison:
    """What was measured of a promise in one case: a ratio for each round."""

    promise: Promise
    case: str
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def is_kept(self) -> bool:
        """Tell whether the promise holds."""
        return self.promise.is_kept(self.median)


def comparisons(results: Results, promises: Iterable[Promise]) -> list[Comparison]:
    """Return the ratios of the rounds that both commits have."""
    found = []
    for promise in promises:
        rounds: dict[str, dict[tuple[str, int], float]] = {}
        for row in results.rows:
            if row.scenario == promise.scenario and promise.figure in row.outcome.figures:
                place = (row.server, row.round)
                rounds.setdefault(row.case, {})[place] = row.outcome.figures[promise.figure]
        for case, figures in rounds.items():
            ratios = _ratios(figures)
            if ratios:
                found.append(Comparison(promise, case, ratios))
    return found


def comparisons_table(found: Sequence[Comparison]) -> str:
    """Return the comparisons as plain text, a line for each."""
    rows = [("load", "case", "figure", "wanted", f"{NEW} / {OLD}", "kept")]
    for item in found:
        spread = f" ({min(item.ratios):.3f}-{max(item.ratios):.3f})" if len(item.ratios) > 1 else ""
        measured = f"{item.median:.3f} x{spread}"
        kept = "yes" if item.is_kept else "NO"
        promise = item.promise
        rows.append((promise.scenario, item.case, promise.figure, promise.wanted, measured, kept))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _ratios(figures: Mapping[tuple[str, int], float]) -> tuple[float, ...]:
    return tuple(
        value / figures[OLD, turn]
        for (server, turn), value in figures.items()
        if server == NEW and figures.get((OLD, turn), 0.0) > 0
    )
