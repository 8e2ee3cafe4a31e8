"""From samples to figures."""

from __future__ import annotations

import pytest

from bench.figures import Outcome, outcome, percentile, spread
from bench.load import Sample


def sample(*times: float, error: str | None = None) -> Sample:
    return Sample(began=10.0, num_tokens=len(times), token_times=list(times), error=error)


def test_figures_of_a_run() -> None:
    """Tokens count over the run's seconds; latencies are milliseconds from the request on."""
    result = outcome([sample(11.0, 11.5, 12.5), sample(13.0, 13.5)], seconds=5.0)
    assert result.figures["tokens_per_second"] == 1.0
    assert result.figures["ttft_p50"] == 2000.0
    assert result.figures["itl_p50"] == 500.0
    assert result.figures["stream_tokens_per_second"] == 1.5
    assert result.ttfts == [1000.0, 3000.0]


def test_failures_are_counted_and_have_no_part_in_the_figures() -> None:
    """Each kind of error is counted; the figures are those of the others."""
    result = outcome([sample(11.0, 12.0), sample(error="HTTP 503"), sample(error="HTTP 503")], 2.0)
    assert (result.num_requests, result.num_failed) == (3, 2)
    assert result.errors == {"HTTP 503": 2}
    assert result.figures["tokens_per_second"] == 1.0


def test_a_run_without_answers_has_no_figures() -> None:
    """Figures of failures alone would be made up."""
    assert outcome([sample(error="HTTP 503")], seconds=1.0).figures == {}


def test_the_cached_part_of_prompts() -> None:
    """It is that of all prompts' tokens together."""
    long, short = sample(11.0), sample(11.0)
    long.prompt_tokens, long.cached_tokens, short.prompt_tokens = 300, 200, 100
    assert outcome([long, short], 1.0).figures["cached_percent"] == 50.0


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 2.5), (100, 4), (25, 1.75)])
def test_percentiles_are_interpolated(percent: float, expected: float) -> None:
    """A percentile between two values is between them."""
    assert percentile([4, 1, 3, 2], percent) == expected


def test_the_median_over_rounds_with_its_spread() -> None:
    """A round without figures has no part in it; no round at all gives none."""
    rounds = [Outcome({"x": value}) for value in (3.0, 1.0, 2.0)] + [Outcome({})]
    figure = spread(rounds, "x")
    assert figure is not None
    assert (figure.median, figure.low, figure.high) == (2.0, 1.0, 3.0)
    assert spread([Outcome({})], "x") is None


def test_a_pooled_percentile_is_that_of_all_rounds_requests() -> None:
    """The 95th of a hundred requests is not the median of five 95ths of twenty."""
    rounds = [
        Outcome({"ttft_p95": 1.0}, ttfts=[1.0] * 10),
        Outcome({"ttft_p95": 1.0}, ttfts=[1.0] * 10),
        Outcome({"ttft_p95": 9.0}, ttfts=[9.0] * 10),
    ]
    pooled, median = spread(rounds, "ttft_p95", is_pooled=True), spread(rounds, "ttft_p95")
    assert pooled is not None
    assert median is not None
    assert (pooled.median, median.median) == (9.0, 1.0)
