"""When an engine's silence is a hang: pure, told the time."""

from __future__ import annotations

_SLOWEST_FACTOR = 20.0
_UNMEASURED_FACTOR = 20.0
_BATCH_FACTOR = 2.0
_MAX_GAP_SECONDS = 1.0


class Watchdog:
    """Measures the silence of an engine that has work; owner: the client.

    The limit is `min_seconds`, or 20 times the slowest step seen, or twice what a whole batch takes
    at the best pace seen (a machine that has only decoded a few tokens a step may meet its first
    long prompt), whichever is longest. While an engine loads its
    model, and until a first step was measured, it is 20 times `min_seconds`; before an engine's
    first report there is none.
    """

    def __init__(self, min_seconds: float, max_step_tokens: int) -> None:
        """`min_seconds` 0 switches it off; a step has `max_step_tokens` at most."""
        self._min_seconds = min_seconds
        self._max_step_tokens = max_step_tokens
        self._slowest_step = 0.0
        self._seconds_per_token: float | None = None  # at the best pace seen
        self._is_loading = True
        self._is_watched = False  # whether this engine has reported, and was not given up
        self._silence = 0.0
        self._checked_at: float | None = None

    @property
    def limit_seconds(self) -> float:
        """How long the engine may be silent now."""
        if self._is_loading or self._seconds_per_token is None:
            return self._min_seconds * _UNMEASURED_FACTOR
        batch = self._seconds_per_token * self._max_step_tokens
        slowest = self._slowest_step * _SLOWEST_FACTOR
        return max(self._min_seconds, slowest, batch * _BATCH_FACTOR)

    def started(self) -> None:
        """A new process begins; what was measured of the ones before holds for it, too."""
        self._is_loading = True
        self._is_watched = False

    def loading(self) -> None:
        """The engine told its progress."""
        self._is_watched = True
        self._silence = 0.0

    def loaded(self) -> None:
        """The engine takes requests from now on."""
        self._is_loading = False
        self.loading()

    def stepped(self, seconds: float, num_tokens: int) -> None:
        """The engine told of a step that took so long and computed so many tokens."""
        self._silence = 0.0
        if num_tokens > 0:
            pace = seconds / num_tokens
            self._slowest_step = max(self._slowest_step, seconds)
            self._seconds_per_token = min(self._seconds_per_token or pace, pace)

    def silence(self, now: float, has_work: bool) -> float | None:
        """Return for how many seconds the engine hangs, None where it does not; ask often.

        A gap between two calls counts as a second at most: when the server itself was stopped or
        starved, the engine's reports may lie unread. After a hang was told it is not told again.
        """
        gap = now - self._checked_at if self._checked_at is not None else 0.0
        self._checked_at = now
        if not has_work and not self._is_loading:
            self._silence = 0.0
            return None
        self._silence += min(gap, _MAX_GAP_SECONDS)
        if self._min_seconds == 0 or not self._is_watched or self._silence <= self.limit_seconds:
            return None
        self._is_watched = False
        return self._silence
