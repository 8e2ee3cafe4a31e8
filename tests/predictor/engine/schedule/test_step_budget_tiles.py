"""Where attention has a faster kernel for many rows, a prompt is computed with it."""

from __future__ import annotations

import pytest

from kserve_llamacpp.engine.schedule.step_budget import StepBudget

_TILED_ROWS = 64
_SMALL_TOKEN = 0.080  # seconds of a row in a small batch, deep in a prompt on a slow machine
_TILED_TOKEN = 0.010


def _took(num_tokens: int) -> float:
    return num_tokens * (_TILED_TOKEN if num_tokens >= _TILED_ROWS else _SMALL_TOKEN)


@pytest.mark.parametrize("num_decoding", [0, 1, 4])
def test_a_slow_small_batch_does_not_keep_batches_small(num_decoding: int) -> None:
    """Parts of 16 tokens that take longer than 64 would are given up for these, and soon."""
    budget = StepBudget(0.2, 512, prefill_token_seconds=0.01, tiled_rows=_TILED_ROWS)
    for _ in range(20):
        budget.observe(0, 16, _took(16))

    sizes = []
    for _ in range(10):
        size = budget.prefill_tokens(num_decoding)
        budget.observe(0, size, _took(size))
        sizes.append(size)

    assert all(size >= _TILED_ROWS for size in sizes)


def test_small_batches_stay_small_where_they_are_fast() -> None:
    """Beside decode, at the beginning of a prompt, a step takes what fits into its time."""
    budget = StepBudget(0.2, 512, prefill_token_seconds=0.01, tiled_rows=_TILED_ROWS)

    assert budget.prefill_tokens(1) == 20
    assert budget.prefill_tokens(0) == _TILED_ROWS  # nobody waits


def test_without_a_faster_kernel_size_follows_time_alone() -> None:
    """Where no batch is tiled, so is none aimed at."""
    budget = StepBudget(0.2, 512, prefill_token_seconds=0.01, tiled_rows=513)

    assert (budget.prefill_tokens(1), budget.prefill_tokens(0)) == (20, 50)
