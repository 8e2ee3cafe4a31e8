"""How the loads are shown: tables and plots of bench/report.py and bench/plots.py."""

from __future__ import annotations

from bench.proxy.peers import BARE, HAPROXY, LITELLM, RAW
from bench.report import Column, Layout
from bench.servers import OURS

ANSWERS = "answers"
CHUNKS = "chunks"
PACED = "paced"
START = "start"
OPEN = "open-streams"

_CPU = Column("cpu_us", "CPU us each")
_P50 = Column("p50_ms", "p50 ms", digits=2)
_P99 = Column("p99_ms", "p99 ms", digits=2)

LAYOUTS = {
    ANSWERS: Layout(
        "Plain answers, asked for in a closed loop",
        (
            Column("requests_per_second", "req/s", True, 0, "Requests a second", is_log=True),
            Column("p50_ms", "p50 ms", True, 2, "Duration of a request, median, ms", is_log=True),
            _P99,
            _CPU,
        ),
        peer=BARE,
    ),
    CHUNKS: Layout(
        "Streams whose events are all sent at once",
        (
            Column("requests_per_second", "streams/s", True, 0, "Streams a second", is_log=True),
            _P50,
            _P99,
            _CPU,
        ),
        peer=BARE,
    ),
    PACED: Layout(
        "Streams by a schedule: how late their events come",
        (
            Column(
                "late_p99_ms", "late p99 ms", True, 1, "Lateness, 99th percentile, ms", is_log=True
            ),
            Column("late_p50_ms", "p50 ms", digits=2),
            Column("late_max_ms", "max ms", digits=1),
            Column("lost", "lost"),
            Column("cpu_percent", "CPU %"),
        ),
        peer=HAPROXY,
    ),
    START: Layout(
        "From the start of the process to its first answer",
        (
            Column("start_ms", "start ms", True, axis="Start to first answer, ms"),
            Column("rss_mib", "idle RSS MiB", True, 1, "Resident memory when idle, MiB"),
        ),
        peer=BARE,
    ),
    OPEN: Layout(
        "Many open streams, an event a second on each",
        (
            Column("kib_per_stream", "KiB a stream", True, 1, "Memory of a stream, KiB"),
            Column("rss_mib", "RSS MiB", digits=1),
            Column("most_open", "open at once"),
            Column("lost", "lost"),
            Column("late_p99_ms", "late p99 ms", digits=1),
        ),
        peer=BARE,
    ),
}

# As in bench/plots.py what is ours is blue.
COLOURS = {
    OURS: "#1b6ca8",
    BARE: "#8ab8dd",
    HAPROXY: "#5f8f4e",
    LITELLM: "#d1711c",
    RAW: "#b5c7d3",
}
