"""How fast requests are served, and when a refused one may come back: pure, told the time."""

from __future__ import annotations

import math

_WEIGHT = 0.1  # of the newest interval in the average
_MIN_SECONDS = 1.0
_MAX_SECONDS = 60.0


class ServiceRate:
    """An exponentially weighted average of the time between two ends; owner: the client.

    Only times with work count: when nothing runs, nothing ends.
    """

    def __init__(self) -> None:
        self._interval: float | None = None
        self._since: float | None = None  # the last end, or when work came to an idle engine

    def began(self, now: float) -> None:
        """A request came while there was none."""
        self._since = now

    def ended(self, now: float) -> None:
        """A request that was served has ended."""
        self._interval = self._average(now)
        self._since = now

    def retry_after_seconds(self, num_before: int, now: float) -> float:
        """Return when so many will have ended: whole seconds, rounded up, 1 to 60.

        Where nothing has ended yet, nothing is known, and it is 1.
        """
        if self._interval is None:
            return _MIN_SECONDS
        interval = max(self._interval, self._average(now))  # slower by now, if none ends for long
        return min(max(float(math.ceil(num_before * interval)), _MIN_SECONDS), _MAX_SECONDS)

    def _average(self, now: float) -> float:
        newest = now - self._since if self._since is not None else 0.0
        if self._interval is None:
            return newest
        return self._interval + _WEIGHT * (newest - self._interval)
