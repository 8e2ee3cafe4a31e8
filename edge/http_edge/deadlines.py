"""When a client is too slow: rules over times and counts of bytes, which the caller tells; pure."""

from __future__ import annotations


class Progress:
    """Whether enough bytes move: in every stretch of time so many at least.

    No credit is kept: who was fast and stops is as slow as who never was fast.
    """

    __slots__ = ("_began", "_count", "_least")

    def __init__(self) -> None:
        self._began: float | None = None
        self._count = 0
        self._least = 0.0

    def stop(self) -> None:
        """Forget the stretch that runs: just now nothing is to move."""
        self._began = None

    def begin(self, now: float, count: int, least: float) -> None:
        """Begin a stretch at a time in seconds: `least` bytes must move, `count` have till now."""
        self._began = now
        self._count = count
        self._least = least

    def is_missed(self, now: float, count: int, seconds: float, least: float) -> bool:
        """Tell whether a stretch of so many seconds has ended with too few bytes.

        One that has ended well is followed by another. So is none: it begins now.
        """
        if self._began is None:
            self.begin(now, count, least)
            return False
        if now - self._began < seconds:
            return False
        if count - self._count < self._least:
            return True
        self.begin(now, count, least)
        return False
