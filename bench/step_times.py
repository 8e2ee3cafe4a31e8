"""How long a step takes in which all sequences decode, under several settings of our engine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.bare_engine import bare_engine, engine_options
from bench.decoding import Decoding
from bench.servers import Setup

# Each is measured beside the others; blanks part its flags. Ratios are to the first.
SETTINGS: tuple[str, ...] = ("--kv_cache=unified", "--kv_cache=split")
_PREFILL_STEPS = 256  # steps that a sequence may decode while those behind it are prefilled
_ALIGNMENT = 256  # cells of a sequence: llama.cpp rounds up to it
# prompts are prefilled in whole batches, so that the first sequence is hardly longer than the last
_PREFILL = "--target_step_ms=5000"


def step_times(
    setup: Setup, setting: str, num_tokens: int, counts: Sequence[int], num_steps: int, seed: int
) -> dict[int, float]:
    """Return the milliseconds of a step by the number of sequences, as a median.

    The sequences begin with so many tokens, and stay when others are added: `counts` rises. All
    run in one fresh process, in which nothing else lies in the KV cache. Raises EngineFailed.
    """
    most = max(counts)
    length = num_tokens + _PREFILL_STEPS + len(counts) * num_steps
    n_ctx = most * -(-length // _ALIGNMENT) * _ALIGNMENT
    flags = (f"--n_ctx={n_ctx}", f"--max_sequences={most}", _PREFILL, *setup.engine_flags)
    times = {}
    with bare_engine(engine_options(setup.model_path, *flags, *setting.split())) as engine:
        decoding = Decoding(engine, seed)
        for before, count in zip((0, *counts), counts, strict=False):
            decoding.add(count - before, num_tokens, length - num_tokens)
            steps = [decoding.step().stats.step_seconds for _ in range(num_steps)]
            times[count] = 1000 * statistics.median(steps)
    return times
