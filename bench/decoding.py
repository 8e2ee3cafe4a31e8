"""Sequences that decode in a bare engine, and nothing else in it."""

from __future__ import annotations

import random

from bench.bare_engine import BareEngine, EngineFailed
from kserve_llamacpp.wire.frames import Output, Rejected, SamplingParams, Step, Submit

_ORDINARY_TOKENS = (1000, 30000)  # neither special nor a byte, in any vocabulary of some size


class Decoding:
    """Greedy sequences behind random tokens, no two alike; owner: one measurement."""

    def __init__(self, engine: BareEngine, seed: int) -> None:
        self._engine = engine
        self._draw = random.Random(seed)  # noqa: S311 - no secret
        self._num_sequences = 0

    def add(self, num_sequences: int, prompt_tokens: int, max_tokens: int) -> None:
        """Add sequences, and return when each has had its first token; raises EngineFailed."""
        prefilling = set()
        for _ in range(num_sequences):
            self._num_sequences += 1
            number = self._num_sequences
            prompt = [self._draw.randint(*_ORDINARY_TOKENS) for _ in range(prompt_tokens)]
            sampling = SamplingParams(temperature=0, ignore_eos=True)
            self._engine.send(Submit(number, f"bench-{number}", prompt, max_tokens, sampling))
            prefilling.add(number)
        while prefilling:
            prefilling -= {output.id for output in self._outputs(self._engine.next_step())}

    def step(self) -> Step:
        """Return the next step, in which every sequence had a token; raises EngineFailed."""
        while not (outputs := self._outputs(step := self._engine.next_step())):
            pass
        if len(outputs) < self._num_sequences:
            raise EngineFailed(
                f"only {len(outputs)} of {self._num_sequences} sequences decode together"
            )
        return step

    def _outputs(self, step: Step) -> list[Output]:
        """Return the tokens of a step; raises EngineFailed when a sequence is at its end."""
        for event in step.events:
            if isinstance(event, Rejected):
                raise EngineFailed(event.message)
            if isinstance(event, Output) and event.finish_reason:
                raise EngineFailed("a sequence ended before its steps were measured")
        return [event for event in step.events if isinstance(event, Output) and event.tokens]
