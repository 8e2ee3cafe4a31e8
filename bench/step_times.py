"""How long a step takes in which all sequences decode, under several settings of our engine."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator

from bench.bare_engine import BareEngine, bare_engine, engine_options
from bench.decoding import Decoding
from bench.servers import Setup

# Each is measured beside the others; blanks part its flags. Ratios are to the first.
SETTINGS: tuple[str, ...] = ("--kv_cache=unified", "--kv_cache=split", "--kv_cache=split+pool")
_PREFILL_STEPS = 256  # steps that a sequence may decode while those behind it are prefilled
_ALIGNMENT = 256  # cells of a sequence: llama.cpp rounds up to it
_SPARE = 2  # split+pool gives the slots one half; nobody is to move while steps are measured
# Prompts are prefilled in whole batches, so that the first sequence is hardly longer than the last.
_PREFILL = ("--target_step_ms=60000", "--host_cache_mib=0")


class Stepper:
    """Sequences in an engine that stands still except while it is asked; owner: one thread."""

    def __init__(self, engine: BareEngine, num_tokens: int, max_tokens: int, seed: int) -> None:
        """Each sequence begins with `num_tokens` tokens, and may get `max_tokens` more."""
        self._engine = engine
        self._decoding = Decoding(engine, seed)
        self._num_tokens = num_tokens
        self._max_tokens = max_tokens

    def add(self, num_sequences: int) -> None:
        """Let sequences be prefilled and join those that decode; raises EngineFailed."""
        with self._engine.awake():
            self._decoding.add(num_sequences, self._num_tokens, self._max_tokens)

    def milliseconds(self, num_steps: int) -> float:
        """Return how long a step takes, the median of some; raises EngineFailed."""
        with self._engine.awake():
            self._decoding.step()  # it stood still in the middle of this one
            steps = [self._decoding.step().stats.step_seconds for _ in range(num_steps)]
        return 1000 * statistics.median(steps)


@contextlib.contextmanager
def steppers(
    setup: Setup, num_tokens: int, max_sequences: int, num_steps: int, seed: int
) -> Iterator[dict[str, Stepper]]:
    """Run an engine under each setting, with cells for so many sequences that take so many steps.

    Nothing but these sequences ever lies in an engine's KV cache. Raises EngineFailed.
    """
    cells = num_tokens + _PREFILL_STEPS + num_steps
    n_ctx = _SPARE * max_sequences * -(-cells // _ALIGNMENT) * _ALIGNMENT
    flags = (f"--n_ctx={n_ctx}", f"--max_sequences={max_sequences}", *_PREFILL)
    with contextlib.ExitStack() as stack:
        found = {}
        for setting in SETTINGS:
            own = (*flags, *setup.engine_flags, *setting.split())
            engine = stack.enter_context(bare_engine(engine_options(setup.model_path, *own)))
            found[setting] = Stepper(engine, num_tokens, cells - num_tokens, seed)
        yield found
