"""From samples to figures."""

from __future__ import annotations

import pytest

from bench.load import Run, Sample, prompt
from bench.report import figures, median, percentile, table


def sample(*times: float, error: str | None = None) -> Sample:
    return Sample(num_tokens=len(times), token_times=list(times), error=error)


def test_figures_of_a_run() -> None:
    """Tokens count over the run's seconds; latencies are milliseconds; failures are counted."""
    run = Run([sample(1.0, 1.5, 2.5), sample(3.0, 3.5), sample(error="HTTP 503")], seconds=5.0)
    result = figures(run)
    assert result.tokens_per_second == 1.0
    assert result.ttft_p50 == 2000.0
    assert result.itl_p50 == 500.0
    assert result.num_failed == 1


def test_a_run_without_answers_is_an_error() -> None:
    """Figures of failures alone would be made up."""
    with pytest.raises(ValueError, match="HTTP 503"):
        figures(Run([sample(error="HTTP 503")], seconds=1.0))


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 2.5), (100, 4), (25, 1.75)])
def test_percentiles_are_interpolated(percent: float, expected: float) -> None:
    """A percentile between two values is between them."""
    assert percentile([4, 1, 3, 2], percent) == expected


def test_table_gives_the_ratio_to_the_first_server() -> None:
    """The medians over the rounds are shown, with the ratio of tokens a second."""
    slow = figures(Run([sample(1.0, 2.0)], seconds=2.0))
    fast = figures(Run([sample(1.0, 2.0)], seconds=1.0))
    assert median([slow, fast, fast]).tokens_per_second == 2.0
    lines = table([(4, "first", [slow, slow]), (4, "second", [fast])]).splitlines()
    assert lines[1].split()[:5] == ["4", "first", "1.0", "(1.0-1.0)", "1.00"]
    assert lines[2].split()[:5] == ["4", "second", "2.0", "(2.0-2.0)", "2.00"]


def test_prompts_share_no_prefix() -> None:
    """Each number gives a prompt of its own from its first words on."""
    prompts = [prompt(number) for number in range(50)]
    assert len({text.split(":")[0] for text in prompts}) == 50
