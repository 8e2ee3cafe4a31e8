"""How long to wait before a dead engine is started again, and when the model counts as failed."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_FORGIVEN = 8  # guilty requests in a row without a token for anybody: then it is the model


@dataclass(frozen=True)
class RestartPolicy:
    """How many engines may die in a row, and how the pauses between them grow.

    A row of deaths ends with a token for any request, or with `window_seconds` without a death.
    """

    max_restarts: int = 5
    window_seconds: float = 300.0
    backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0


class Restarts:
    """Counts deaths in a row; pure, told the time; owner: the supervisor."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._num_deaths = 0
        self._died_at = 0.0
        self._num_forgiven = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether more engines have died in a row than may: the model counts as failed."""
        return self._num_deaths > self._policy.max_restarts

    @property
    def delay_seconds(self) -> float:
        """How long to wait before the next start: not at all at first, then longer, to a bound."""
        if self._num_deaths <= 1:
            return 0.0
        # the exponent is bounded, for the row is not
        backoff = self._policy.backoff_seconds * 2.0 ** min(self._num_deaths - 2, 30)
        return min(backoff, self._policy.max_backoff_seconds)

    def died(self, now: float) -> None:
        """Count an engine that has died, or that could not be started."""
        if now - self._died_at > self._policy.window_seconds:
            self._num_deaths = 0
        self._num_deaths += 1
        self._died_at = now

    def progressed(self) -> None:
        """A request got a token: the row has ended."""
        self._num_deaths = 0
        self._num_forgiven = 0

    def forgive(self, num_deaths: int) -> None:
        """Take deaths back for which a request was found guilty.

        Where request after request is found guilty and none gets a token in between, the model is
        to blame: then their deaths count.
        """
        if self._num_forgiven < _MAX_FORGIVEN:
            self._num_forgiven += 1
            self._num_deaths = max(0, self._num_deaths - num_deaths)
