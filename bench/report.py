"""From samples to figures, and from figures to a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.load import Run


@dataclass(frozen=True)
class Figures:
    """One run in figures: tokens a second over all clients, latencies in milliseconds."""

    tokens_per_second: float
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    itl_p99: float
    num_failed: int


def figures(run: Run) -> Figures:
    """Return the figures of a run; raises ValueError when no request succeeded."""
    good = [sample for sample in run.samples if sample.error is None]
    if not good:
        errors = {sample.error for sample in run.samples}
        raise ValueError(f"no request succeeded: {errors}")
    ttft = [sample.ttft * 1000 for sample in good]
    gaps = [gap * 1000 for sample in good for gap in sample.gaps] or [0.0]
    return Figures(
        tokens_per_second=sum(sample.num_tokens for sample in good) / run.seconds,
        ttft_p50=percentile(ttft, 50),
        ttft_p95=percentile(ttft, 95),
        itl_p50=percentile(gaps, 50),
        itl_p99=percentile(gaps, 99),
        num_failed=len(run.samples) - len(good),
    )


def median(rounds: list[Figures]) -> Figures:
    """Return the median of each figure over rounds; failures are added up."""

    def middle(name: str) -> float:
        return float(statistics.median(getattr(figure, name) for figure in rounds))

    return Figures(
        middle("tokens_per_second"),
        middle("ttft_p50"),
        middle("ttft_p95"),
        middle("itl_p50"),
        middle("itl_p99"),
        sum(figure.num_failed for figure in rounds),
    )


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile by linear interpolation; `values` need not be sorted."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def table(rows: list[tuple[int, str, list[Figures]]]) -> str:
    """Return a table of medians: a line for each number of clients and server.

    The spread of tok/s over the rounds stands behind it; the ratio is to the first server.
    """
    head = (
        f"{'clients':>7}  {'server':<14} {'tok/s':>7} {'(min-max)':>15} {'ratio':>6} "
        f"{'TTFT p50':>9} {'p95':>7} {'ITL p50':>8} {'p99':>7} {'failed':>6}   (ms)"
    )
    lines = [head]
    first: dict[int, float] = {}
    for num_clients, name, rounds in rows:
        middle = median(rounds)
        base = first.setdefault(num_clients, middle.tokens_per_second)
        speeds = [figure.tokens_per_second for figure in rounds]
        spread = f"({min(speeds):.1f}-{max(speeds):.1f})"
        lines.append(
            f"{num_clients:>7}  {name:<14} {middle.tokens_per_second:>7.1f} {spread:>15} "
            f"{middle.tokens_per_second / base:>6.2f} {middle.ttft_p50:>9.0f} "
            f"{middle.ttft_p95:>7.0f} {middle.itl_p50:>8.1f} {middle.itl_p99:>7.1f} "
            f"{middle.num_failed:>6}"
        )
    return "\n".join(lines)
