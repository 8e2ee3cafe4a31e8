"""Puts the loads on the servers: in turn within each round, so that all see the same machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.figures import Outcome
from bench.proxy.layouts import ANSWERS, CHUNKS, OPEN, PACED, START
from bench.proxy.load import Client, Closed, Measured, Paced
from bench.proxy.peers import RAW, Server
from bench.proxy.sizes import Sizes
from bench.results import Results, Row
from bench.runner import in_turn, say

IDLE_SECONDS = 1.0
# Who is so late, or has lost streams, is not asked for more of them in this run.
_HOPELESS_MS = 1000.0
_COUNTS = frozenset({"lost", "most_open"})  # known also where nothing came


class Runner:
    """Runs the loads and keeps what they gave; owner: one run of the benchmark."""

    def __init__(
        self,
        results: Results,
        sizes: Sizes,
        client: Client,
        upstream: Server,
        save: Callable[[], None],
        sleep: Callable[[float], None],
    ) -> None:
        """`save` is called with every new row in `results`: a run that is cut off keeps them."""
        self._results = results
        self._sizes = sizes
        self._client = client
        self._upstream = upstream
        self._save = save
        self._sleep = sleep

    def on_answers(self, servers: Sequence[Server]) -> None:
        """Ask for plain answers."""
        for turn in range(self._sizes.rounds):
            for count in self._sizes.connections:
                for server in in_turn(servers, turn):
                    self._closed(ANSWERS, connections(count), count, 0, server, turn)

    def on_chunks(self, servers: Sequence[Server]) -> None:
        """Ask for streams whose events are sent at once."""
        count, chunks = max(self._sizes.connections), self._sizes.chunks
        for turn in range(self._sizes.rounds):
            for server in in_turn(servers, turn):
                case = f"{connections(count)}, {chunks} events"
                self._closed(CHUNKS, case, count, chunks, server, turn)

    def on_paced(self, servers: Sequence[Server]) -> None:
        """Open streams by a schedule, in each round more and more of them."""
        hopeless: set[str] = set()
        for turn in range(self._sizes.stream_rounds):
            for count in sorted(self._sizes.paced_streams):
                for server in in_turn(servers, turn):
                    if server.name not in hopeless and self._paced(count, server, turn):
                        hopeless.add(server.name)

    def on_fresh(self, server: Server, scenarios: Sequence[str], turn: int) -> None:
        """Measure a server that has just been started and has nothing to do."""
        self._sleep(IDLE_SECONDS)
        idle_mib = server.family.rss_mib()
        if START in scenarios:
            figures = {"start_ms": 1000 * server.start_seconds, "rss_mib": idle_mib}
            self._add(Row(START, "1 process", server.name, turn, Outcome(figures, 1)))
        if OPEN in scenarios:
            self._open(server, idle_mib, turn)

    def _closed(
        self, scenario: str, case: str, count: int, chunks: int, server: Server, turn: int
    ) -> None:
        sizes = self._sizes
        load = Closed(count, chunks, sizes.warm_up_seconds, sizes.measure_seconds)
        measured, cpu_seconds = self._ask(server, load)
        figures = {
            "requests_per_second": measured.complete / measured.seconds,
            "p50_ms": measured.p50_ms,
            "p99_ms": measured.p99_ms,
            "cpu_us": 1e6 * cpu_seconds / max(1, measured.requests),
        }
        self._add(Row(scenario, case, server.name, turn, _outcome(measured, figures)))

    def _paced(self, count: int, server: Server, turn: int) -> bool:
        """Open so many streams; return whether the server is hopelessly late."""
        sizes = self._sizes
        every_seconds = 1 / sizes.chunks_per_second
        load = Paced(
            count,
            sizes.ramp_seconds,
            every_seconds,
            sizes.settle_seconds,
            sizes.paced_seconds,
            sizes.patience_seconds,
        )
        measured, cpu_seconds = self._ask(server, load)
        lost = count - measured.complete
        figures = {
            "late_p50_ms": measured.p50_ms,
            "late_p99_ms": measured.p99_ms,
            "late_max_ms": measured.max_ms,
            "lost": lost,
            "cpu_percent": 100 * cpu_seconds / measured.elapsed_seconds,
        }
        self._add(Row(PACED, streams(count), server.name, turn, _outcome(measured, figures)))
        return lost > 0 or measured.p99_ms > _HOPELESS_MS

    def _open(self, server: Server, idle_mib: float, turn: int) -> None:
        sizes = self._sizes
        count = sizes.open_streams
        load = Paced(
            count,
            max(0.5, count / 400),
            1.0,
            sizes.settle_seconds,
            sizes.open_seconds,
            sizes.patience_seconds,
        )
        highest = idle_mib

        def watch() -> None:
            nonlocal highest
            highest = max(highest, server.family.rss_mib())

        measured, _ = self._ask(server, load, watch)
        figures = {
            "kib_per_stream": 1024 * (highest - idle_mib) / max(1, measured.most_open),
            "rss_mib": highest,
            "most_open": measured.most_open,
            "lost": count - measured.complete,
            "late_p99_ms": measured.p99_ms,
        }
        self._add(Row(OPEN, streams(count), server.name, turn, _outcome(measured, figures)))

    def _ask(
        self, server: Server, load: Closed | Paced, watch: Callable[[], None] = lambda: None
    ) -> tuple[Measured, float]:
        """Return what the client measured, and the processor time that the server took."""
        began, upstream_began = server.family.cpu_seconds(), self._upstream.family.cpu_seconds()
        measured = self._client.ask(server.port, load, watch)
        used = server.family.cpu_seconds() - began
        if server.name != RAW:
            ends = measured.cpu_seconds + self._upstream.family.cpu_seconds() - upstream_began
            percent = 100 * ends / measured.elapsed_seconds
            self._results.client_percent = max(self._results.client_percent, percent)
        return measured, used

    def _add(self, row: Row) -> None:
        self._results.rows.append(row)
        self._save()
        say("!" if row.outcome.errors else ".")


def connections(count: int) -> str:
    """Return how a closed load is called."""
    return f"{count} connection{'s' if count > 1 else ''}"


def streams(count: int) -> str:
    """Return how a load of streams is called."""
    return f"{count} streams"


def _outcome(measured: Measured, figures: dict[str, float]) -> Outcome:
    if not measured.samples:
        figures = {name: value for name, value in figures.items() if name in _COUNTS}
    return Outcome(figures, measured.requests, measured.errors)
