"""How much is asked for: enough for figures, or just enough to see that all of it works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Rounds, connections, streams; times in seconds, of one load on one server."""

    rounds: int = 5
    stream_rounds: int = 3
    """Of the loads that take long: paced and open streams."""
    connections: tuple[int, ...] = (1, 16)
    chunks: int = 32
    warm_up_seconds: float = 0.5
    measure_seconds: float = 3.0
    paced_streams: tuple[int, ...] = (100, 250, 500)
    chunks_per_second: int = 20
    ramp_seconds: float = 2.017
    """In which all paced streams are opened; no multiple of the pace: they are not due together."""
    settle_seconds: float = 1.0
    paced_seconds: float = 8.0
    open_streams: int = 2000
    open_seconds: float = 10.0
    patience_seconds: float = 30.0
    """How long streams may take beyond their schedule until they count as lost."""

    @property
    def most_streams(self) -> int:
        """The most streams that are open at once."""
        return max(*self.paced_streams, self.open_streams, *self.connections)


QUICK = Sizes(
    rounds=1,
    stream_rounds=1,
    connections=(1, 4),
    warm_up_seconds=0.1,
    measure_seconds=0.4,
    paced_streams=(20,),
    ramp_seconds=0.217,
    settle_seconds=0.2,
    paced_seconds=1.0,
    open_streams=50,
    open_seconds=2.0,
    patience_seconds=10.0,
)
