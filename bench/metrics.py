"""Counters of the prefix cache, read from a server's /metrics."""

from __future__ import annotations


def cache_counters(text: str) -> dict[str, float]:
    """Return every sample whose name contains `prefix_cache`, labels included, by its name."""
    samples = [
        line.rpartition(" ")
        for line in text.splitlines()
        if "prefix_cache" in line.partition("{")[0] and not line.startswith("#")
    ]
    return {name: float(value) for name, _, value in samples if "_created" not in name}


def risen(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return how far each counter rose."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def num_evicting(counters: dict[str, float]) -> int:
    """Return how many counters of evictions have risen: one for each tier of the cache."""
    return sum("eviction" in name and value > 0 for name, value in counters.items())
