"""From results to tables: medians over the rounds, their spread, ratios to a peer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.engine_rate import BATCHED_BENCH
from bench.figures import Outcome, spread
from bench.results import Results
from bench.runner import CHURN, COLD, DEFAULT_MODE, DETERMINISTIC, KV_LAYOUTS, OVERHEAD
from bench.servers import LLAMA_SERVER
from bench.step_times import SETTINGS


@dataclass(frozen=True)
class Column:
    """A figure in a table; a headline comes with its spread, its ratio and a plot.

    `axis` is its title in the plot, where there is room to say what it is; the plot's scale
    `is_log` where figures differ by more than can be seen otherwise.
    """

    figure: str
    title: str
    is_headline: bool = False
    digits: int = 0
    axis: str | None = None
    is_log: bool = False

    @property
    def better(self) -> str:
        """Which values are better: of rates the higher, of times the lower ones."""
        return "higher" if self.figure.endswith("per_second") else "lower"


@dataclass(frozen=True)
class Layout:
    """How one scenario is shown: what to compare with is a server, or else the first case."""

    title: str
    columns: tuple[Column, ...]
    peer: str | None = LLAMA_SERVER
    is_pooled: bool = False


_RATE = Column("tokens_per_second", "tok/s", True, 1, "Tokens a second")
_TTFT = Column("ttft_p50", "TTFT p50 ms", True, axis="Time to first token, median, ms")
_TTFT_P95 = Column("ttft_p95", "TTFT p95 ms")
_ITL = Column("itl_p50", "ITL p50 ms", digits=1)
_ITL_P99 = Column("itl_p99", "ITL p99 ms", digits=1)
_CACHED = Column("cached_percent", "cached %")

LAYOUTS = {
    "distinct": Layout("Distinct prompts", (_RATE, _TTFT, _TTFT_P95, _ITL, _ITL_P99)),
    "shared-prefix": Layout(
        "One system prompt, new to the server", (_RATE, _TTFT, _TTFT_P95, _CACHED)
    ),
    "long-prompt": Layout(
        "A long prompt arrives while others decode",
        (
            Column(
                "longest_gap", "longest gap ms", True, axis="Longest gap between two tokens, ms"
            ),
            Column(
                "ttft_p50",
                "TTFT of the long one ms",
                True,
                axis="First token of the long prompt, ms",
            ),
            Column("prompt_tokens", "its tokens"),
        ),
    ),
    "chats": Layout("Chats whose history grows", (_RATE, _TTFT, _TTFT_P95, _CACHED)),
    "tenants": Layout(
        "Tenant B with one client beside tenant A with many (B's figures)",
        (
            Column(
                "ttft_p95",
                "TTFT p95 ms",
                True,
                axis="Time to first token of B, 95th percentile, ms",
            ),
            Column("ttft_p50", "TTFT p50 ms"),
            Column("itl_p50", "step ms", digits=1),
            Column("crowd_tokens_per_second", "A's tok/s", digits=1),
        ),
        peer=None,
        is_pooled=True,
    ),
    CHURN: Layout(
        "Distinct prompts on caches that have evicted",
        (
            Column(
                "stream_tokens_per_second",
                "tok/s a stream",
                True,
                1,
                "Tokens a second of a stream while it decodes",
            ),
            Column("tokens_per_second", "tok/s", digits=1),
            _TTFT,
            _ITL,
        ),
        peer=COLD,
    ),
    OVERHEAD: Layout(
        "Decode rate of the engine without HTTP",
        (Column("decode_tokens_per_second", "tok/s", True, 1, "Tokens a second, decode"),),
        peer=BATCHED_BENCH,
    ),
    DETERMINISTIC: Layout(
        "The cost of deterministic mode",
        (_RATE, _TTFT, _TTFT_P95, _ITL, _ITL_P99),
        peer=DEFAULT_MODE,
    ),
    KV_LAYOUTS: Layout(
        "A step in which all sequences decode, under several settings",
        (Column("step_ms", "ms a step", True, 1, "Milliseconds of a step"),),
        peer=SETTINGS[0],
    ),
}


def report(results: Results, layouts: Mapping[str, Layout] = LAYOUTS) -> str:
    """Return all tables as plain text; `layouts` are those of the scenarios, by name."""
    parts = [results.machine]
    parts += [scenario_table(results, name, layouts) for name in results.scenarios]
    parts += [_memory_table(results)] if results.memory_mib else []
    if results.client_percent:
        share = f"{results.client_percent:.0f} %"
        parts.append(f"The load generator took at most {share} of one core.")
    return "\n\n".join(parts)


def scenario_table(results: Results, name: str, layouts: Mapping[str, Layout] = LAYOUTS) -> str:
    """Return one scenario's table, with what failed and how far the cache's counters rose."""
    layout, found = layouts[name], results.by_case(name)
    head = ["case", "server"]
    for column in layout.columns:
        head += [column.title, *(["(min-max)", "ratio"] if column.is_headline else [])]
    rows = [head]
    for (case, server), outcomes in found.items():
        peer = found.get((case, layout.peer) if layout.peer else (first_case(found), server))
        cells = [
            cell
            for column in layout.columns
            for cell in _cells(column, outcomes, peer, layout.is_pooled)
        ]
        rows.append([case, server, *cells])
    lines = [f"{layout.title} ({name}; {_rounds(found)})", _aligned(rows), *_failures(found)]
    lines += [f"  {results.notes[name]}"] if name in results.notes else []
    lines += [
        f"  {counter} +{value:g}" for counter, value in results.counters.get(name, {}).items()
    ]
    return "\n".join(lines)


def first_case(found: dict[tuple[str, str], list[Outcome]]) -> str:
    """Return the case that came first."""
    return next(iter(found))[0]


def _cells(
    column: Column, outcomes: list[Outcome], peer: list[Outcome] | None, is_pooled: bool
) -> list[str]:
    figure = spread(outcomes, column.figure, is_pooled)
    if figure is None:
        return ["-"] * (3 if column.is_headline else 1)
    cells = [f"{figure.median:.{column.digits}f}"]
    if column.is_headline:
        cells.append(f"({figure.low:.{column.digits}f}-{figure.high:.{column.digits}f})")
        base = spread(peer, column.figure, is_pooled) if peer else None
        cells.append(f"{figure.median / base.median:.2f}" if base and base.median else "-")
    return cells


def _rounds(found: dict[tuple[str, str], list[Outcome]]) -> str:
    count = max(len(outcomes) for outcomes in found.values())
    return f"{count} rounds, medians" if count > 1 else "1 round"


def _failures(found: dict[tuple[str, str], list[Outcome]]) -> list[str]:
    lines = []
    for (case, server), outcomes in found.items():
        total = sum(outcome.num_requests for outcome in outcomes)
        errors: dict[str, int] = {}
        for outcome in outcomes:
            for error, count in outcome.errors.items():
                errors[error] = errors.get(error, 0) + count
        if errors:
            kinds = ", ".join(f"{error}: {count}" for error, count in errors.items())
            failed = sum(errors.values())
            lines.append(f"  FAILED: {failed} of {total} requests, {server}, {case} ({kinds})")
    return lines


def _memory_table(results: Results) -> str:
    rows = [["server", "at the start", "highest"]]
    for server, moments in results.memory_mib.items():
        first = next(iter(moments.values()))
        rows.append([server, f"{first:.0f}", f"{max(moments.values()):.0f}"])
    return f"Memory of a server's processes (PSS, MiB)\n{_aligned(rows)}"


def _aligned(rows: list[list[str]]) -> str:
    """Return rows in columns: names to the left, figures to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    names = 1 + (rows[0][0] == "case")
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < names else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
