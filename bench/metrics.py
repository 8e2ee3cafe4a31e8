"""What a server tells of its prefix cache at /metrics."""

from __future__ import annotations

from collections.abc import Sequence

_WINDOW = 4
_STILL = 1.05


def cache_samples(text: str) -> dict[str, float]:
    """Return every counter and gauge whose name contains `cache`, by its name with labels."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    samples = [line.rpartition(" ") for line in lines if "cache" in line.partition("{")[0]]
    left_out = ("_created", "_info")
    return {
        name: float(value)
        for name, _, value in samples
        if not name.partition("{")[0].endswith(left_out)
    }


def risen(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return how far each counter rose."""
    return {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if name.partition("{")[0].endswith("_total")
    }


def total(samples: dict[str, float], part: str) -> float:
    """Return the sum of the samples whose names contain a part."""
    return sum(value for name, value in samples.items() if part in name.partition("{")[0])


def has_evicted(history: Sequence[dict[str, float]]) -> bool:
    """Whether both tiers evict: the device gives up tokens, and the host's size stands still.

    `history` has the samples after each of some alike loads, the latest last.
    """
    if len(history) <= _WINDOW:
        return False
    then, now = history[-1 - _WINDOW], history[-1]
    evicts = total(now, "evictions") > total(then, "evictions")
    return evicts and total(now, "host_cache_bytes") <= _STILL * total(then, "host_cache_bytes")
