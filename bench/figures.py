"""From samples to figures: rates in tokens a second, latencies in milliseconds."""

from __future__ import annotations

import collections
import statistics
from dataclasses import dataclass, field

from bench.load import Sample


@dataclass(frozen=True)
class Outcome:
    """What one round of one scenario gave one server; no figures when nothing succeeded."""

    figures: dict[str, float]
    num_requests: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    ttfts: list[float] = field(default_factory=list)

    @property
    def num_failed(self) -> int:
        """Requests that failed."""
        return sum(self.errors.values())


def outcome(samples: list[Sample], seconds: float, **more: float) -> Outcome:
    """Return the figures of requests that took `seconds` together; `more` are added to them."""
    good = [sample for sample in samples if sample.error is None]
    errors = collections.Counter(sample.error for sample in samples if sample.error is not None)
    ttfts = [round(sample.ttft * 1000, 1) for sample in good]
    figures = {**_figures(good, ttfts, seconds), **more} if good else {}
    return Outcome(figures, len(samples), dict(errors), ttfts)


def _figures(good: list[Sample], ttfts: list[float], seconds: float) -> dict[str, float]:
    gaps = [gap * 1000 for sample in good for gap in sample.gaps] or [0.0]
    prompt_tokens = sum(sample.prompt_tokens for sample in good)
    return {
        "tokens_per_second": sum(sample.num_tokens for sample in good) / seconds,
        "ttft_p50": percentile(ttfts, 50),
        "ttft_p95": percentile(ttfts, 95),
        "itl_p50": percentile(gaps, 50),
        "itl_p99": percentile(gaps, 99),
        "stream_tokens_per_second": 1000 / statistics.fmean(gaps) if any(gaps) else 0.0,
        "prompt_tokens": prompt_tokens / len(good),
        "cached_percent": 100
        * sum(sample.cached_tokens for sample in good)
        / max(1, prompt_tokens),
    }


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile by linear interpolation; `values` need not be sorted."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float


def spread(outcomes: list[Outcome], name: str, is_pooled: bool = False) -> Spread | None:
    """Return the median of a figure and its extremes, None when no round has it.

    Pooled, a TTFT's percentile is that of all rounds' requests together.
    """
    values = [outcome.figures[name] for outcome in outcomes if name in outcome.figures]
    if not values:
        return None
    middle = statistics.median(values)
    if is_pooled and name.startswith("ttft_p"):
        middle = percentile([ttft for o in outcomes for ttft in o.ttfts], float(name[6:]))
    return Spread(middle, min(values), max(values))
