"""What is counted of every request, in plain numbers, which Prometheus gets when it asks.

The client library's own counters take a lock for each number, since any thread may count; requests
are counted by the event loop alone, which answers Prometheus, too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

DURATION_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
# vLLM's buckets for the time to first token, so that panels fit both
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)


class RequestMetrics(Collector):
    """Counts requests; labels are bounded by who calls it. Owner: the event loop."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._num_running = 0
        self._counts: dict[tuple[str, int, str], int] = {}
        self._durations: dict[tuple[str, ...], _Times] = {}
        self._ttfts: dict[tuple[str, ...], _Times] = {}

    def began(self) -> None:
        """Count a request as running."""
        self._num_running += 1

    def ended(
        self, path: str, status: int, model: str, seconds: float, ttft_seconds: float | None
    ) -> None:
        """Count a request that ran for so long; `status` is 0 for one without an answer."""
        self._num_running -= 1
        key = (path, status, model)
        self._counts[key] = self._counts.get(key, 0) + 1
        _times(self._durations, (path,), DURATION_BUCKETS).add(seconds)
        if ttft_seconds is not None:
            _times(self._ttfts, (path, model), TTFT_BUCKETS).add(ttft_seconds)

    def collect(self) -> Iterable[Metric]:
        """Return what was counted."""
        requests = CounterMetricFamily(
            f"{self._namespace}_requests",
            "Requests answered.",
            labels=("path", "status", "model"),
        )
        for (path, status, model), count in self._counts.items():
            requests.add_metric((path, str(status), model), count)
        yield requests
        yield GaugeMetricFamily(
            f"{self._namespace}_requests_in_flight",
            "Requests that run now.",
            value=self._num_running,
        )
        durations = HistogramMetricFamily(
            f"{self._namespace}_request_duration_seconds",
            "Time from a request's head to its answer's last byte.",
            labels=("path",),
        )
        for labels, times in self._durations.items():
            durations.add_metric(labels, list(times.buckets()), times.total)
        yield durations
        ttfts = HistogramMetricFamily(
            f"{self._namespace}_time_to_first_token_seconds",
            "Time from a request's head to the first event of its stream.",
            labels=("path", "model"),
        )
        for labels, times in self._ttfts.items():
            ttfts.add_metric(labels, list(times.buckets()), times.total)
        yield ttfts


class _Times:
    """One series of a histogram; the last of `counts` is of what is above all `bounds`."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> Iterator[tuple[str, float]]:
        """Return the buckets' upper bounds, and how many are in each and all below."""
        bounds = (*self._bounds, float("inf"))
        names = (floatToGoString(one) for one in bounds)  # type: ignore[no-untyped-call]
        return zip(names, accumulate(self._counts), strict=True)


def _times(
    series: dict[tuple[str, ...], _Times], labels: tuple[str, ...], bounds: Sequence[float]
) -> _Times:
    found = series.get(labels)
    if found is None:
        found = series[labels] = _Times(bounds)
    return found
