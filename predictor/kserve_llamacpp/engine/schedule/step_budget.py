"""How many prompt tokens a step computes, so that it stays near a target time."""

from __future__ import annotations

_MIN_TOKENS = 16  # fewer cost a step as much as they do
_ALONE = 2.5  # a step that nobody waits for may take so many targets
_LEAST_SHARE = 0.5  # of the time for decode that a step gives to prefill at least
_WORTH = 3.0  # a step with four times the tokens may take so many times as long
_WEIGHT = 0.2  # of a new measurement


class StepBudget:
    """Sizes prefill by what steps took; owner: the engine. Times are arguments, in seconds."""

    def __init__(
        self,
        target_seconds: float,
        max_tokens: int,
        prefill_token_seconds: float,
        tiled_rows: int = 0,
    ) -> None:
        """`prefill_token_seconds` is a first guess, soon replaced by what is measured.

        From `tiled_rows` on, if it is not 0, attention has a faster kernel: deep in a prompt 16
        rows may take as long as 64.
        """
        self._tiled_rows = tiled_rows if tiled_rows <= max_tokens else 0
        self._small_token = prefill_token_seconds  # in batches below the tiled ones
        self._target = target_seconds
        self._max_tokens = max_tokens
        self._prefill_token = prefill_token_seconds
        self._decode_row: float | None = None

    def prefill_tokens(self, num_decoding: int) -> int:
        """Return how many prompt tokens fit into a step beside so many decoding sequences."""
        decode = num_decoding * (self._decode_row or 0.0)
        if num_decoding:
            seconds = max(self._target - decode, _LEAST_SHARE * decode)
        else:
            seconds = _ALONE * self._target
        tokens = int(seconds / max(self._prefill_token, 1e-9))
        if tokens < self._tiled_rows:
            tokens = self._small_or_tiled(seconds, is_alone=num_decoding == 0)
        return min(max(tokens, _MIN_TOKENS), self._max_tokens - num_decoding)

    def _small_or_tiled(self, seconds: float, is_alone: bool) -> int:
        """Return the size of a part, where the least tiled one takes longer than is wanted.

        It is taken where nobody waits for the step, and where it takes at most three times as long
        as a small one: behind 500 tokens 16 rows took 227 ms and 64 took 341 (SmolLM2, 2 cores).
        """
        small_token = max(self._small_token, self._prefill_token)  # the former may be of long ago
        small = max(_MIN_TOKENS, int(seconds / max(small_token, 1e-9)))
        small = min(small, self._tiled_rows - 1)
        is_worth = self._tiled_rows * self._prefill_token <= _WORTH * small * small_token
        return self._tiled_rows if is_alone or is_worth else small

    def observe(self, num_decoding: int, num_prefill: int, seconds: float) -> None:
        """Take note of what a batch took."""
        if num_prefill == 0:
            row = seconds / num_decoding
            self._decode_row = _mixed(self._decode_row, row)
        elif num_prefill >= _MIN_TOKENS:
            own = seconds - num_decoding * (self._decode_row or 0.0)
            # beside decode the time is shared by a guess: never take it for less than half
            token = max(own, seconds / 2) / num_prefill
            if num_prefill < self._tiled_rows:
                self._small_token = _mixed(self._small_token, token)
            else:
                self._prefill_token = _mixed(self._prefill_token, token)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)


class FixedBudget(StepBudget):
    """A budget that measures nothing: steps of the same size, whatever they take."""

    def __init__(self, step_tokens: int) -> None:
        super().__init__(1.0, step_tokens, 1.0)
        self._step_tokens = step_tokens

    def prefill_tokens(self, num_decoding: int) -> int:
        """Return how many prompt tokens fit into a step beside so many decoding sequences."""
        return self._step_tokens - num_decoding
