"""From results to tables, files and plots."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.figures import Outcome
from bench.plots import colours_of, write_plots
from bench.report import LAYOUTS, report, scenario_table
from bench.results import Results, Row, merged, read_results
from bench.runner import CHURN, COLD, DEFAULT_MODE, DETERMINISTIC, KV_LAYOUTS, OVERHEAD
from bench.servers import LLAMA_SERVER, OURS
from bench.step_times import SETTINGS


def results(*rows: Row) -> Results:
    return Results("a machine", {}, list(rows))


def rate(server: str, turn: int, value: float, case: str = "4 clients") -> Row:
    return Row("distinct", case, server, turn, Outcome({"tokens_per_second": value}, 8))


def test_the_ratio_is_to_llama_server() -> None:
    """Medians over the rounds, their spread, and the ratio of a case to the same case's peer."""
    table = scenario_table(
        results(
            *(rate(OURS, turn, value) for turn, value in enumerate([80.0, 90.0, 70.0])),
            *(rate(LLAMA_SERVER, turn, value) for turn, value in enumerate([40.0, 41.0, 39.0])),
        ),
        "distinct",
    )
    ours, theirs = table.splitlines()[2:4]
    assert ours.split()[:6] == ["4", "clients", "ours", "80.0", "(70.0-90.0)", "2.00"]
    assert theirs.split()[3:6] == ["40.0", "(39.0-41.0)", "1.00"]


def test_without_a_peer_there_is_no_ratio() -> None:
    """A ratio to oneself would look like a result."""
    assert (
        scenario_table(results(rate(OURS, 0, 80.0)), "distinct").splitlines()[2].split()[5] == "-"
    )


def test_the_lone_tenant_is_compared_with_itself_alone() -> None:
    """There the first case is the base, for each server its own."""
    rows = [
        Row("tenants", case, OURS, 0, Outcome({"ttft_p95": ttft}, 1, ttfts=[ttft]))
        for case, ttft in [("B alone", 100.0), ("B, 16 clients of A", 150.0)]
    ]
    assert " 1.50 " in scenario_table(results(*rows), "tenants").splitlines()[3]


def test_a_scenario_with_failures_says_so() -> None:
    """How many, where, and which; a server without an answer has dashes for figures."""
    rows = [
        Row("distinct", "1 client", OURS, turn, Outcome({}, 8, {"HTTP 500": 3, "timeout": 5}))
        for turn in range(2)
    ]
    table = scenario_table(results(*rows), "distinct")
    assert "FAILED: 16 of 16 requests, ours, 1 client (HTTP 500: 6, timeout: 10)" in table
    assert table.splitlines()[2].split()[3:] == ["-"] * 9
    assert results(*rows).num_failed == 16


def test_counters_and_memory_are_in_the_report() -> None:
    """What the prefix cache counted stands under its scenario, memory at the end."""
    given = results(rate(OURS, 0, 80.0))
    given.counters = {"distinct": {'vllm:prefix_cache_hits_total{model_name="m"}': 12.0}}
    given.notes = {"distinct": "8 prompts before"}
    given.memory_mib = {OURS: {"at the start": 300.0, "after distinct": 500.0, "later": 400.0}}
    text = report(given)
    assert 'vllm:prefix_cache_hits_total{model_name="m"} +12' in text
    assert "\n  8 prompts before\n" in text
    assert ["ours", "300", "500"] in [line.split() for line in text.splitlines()]


def every_scenario() -> Results:
    rows = []
    for name, layout in LAYOUTS.items():
        figures = {column.figure: 5.0 for column in layout.columns}
        outcome = Outcome(figures, 1, ttfts=[4.0, 6.0])
        servers = {
            CHURN: [COLD, "churned"],
            OVERHEAD: [OURS],
            DETERMINISTIC: [DEFAULT_MODE],
            KV_LAYOUTS: list(SETTINGS),
        }.get(name, [OURS, LLAMA_SERVER])
        rows += [
            Row(name, case, server, turn, outcome)
            for case in ("a", "b")
            for server in servers
            for turn in (0, 1)
        ]
    rows.append(Row("distinct", "c", OURS, 0, Outcome({}, 1, {"timeout": 1})))
    return results(*rows)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Tables and plots of a file are those of its run."""
    given = every_scenario()
    given.write(tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == given


def test_of_several_runs_the_last_that_asked_counts() -> None:
    """Scenario by scenario, its counters and notes included; memory is that of every moment."""
    long, again = results(rate(OURS, 0, 80.0)), results(rate(OURS, 0, 90.0), rate(OURS, 1, 92.0))
    long.rows.append(Row("chats", "8 users", OURS, 0, Outcome({"tokens_per_second": 50.0})))
    long.counters = {"distinct": {"hits": 1.0}, "chats": {"hits": 2.0}}
    long.notes = {"distinct": "of the long run"}
    long.memory_mib = {OURS: {"at the start": 300.0, "after chats": 400.0}}
    again.counters = {"distinct": {"hits": 3.0}}
    again.memory_mib = {OURS: {"at the start": 310.0}}
    whole = merged([long, again])
    assert [row.outcome.figures["tokens_per_second"] for row in whole.rows] == [50.0, 90.0, 92.0]
    assert whole.counters == {"distinct": {"hits": 3.0}, "chats": {"hits": 2.0}}
    assert whole.notes == {}
    assert whole.memory_mib == {OURS: {"at the start": 310.0, "after chats": 400.0}}
    assert whole.machine == "a machine"


def test_each_scenario_has_its_plot(tmp_path: Path) -> None:
    """A PNG for each, also where a server has no figures."""
    paths = write_plots(every_scenario(), tmp_path / "images")
    assert [path.name for path in paths] == [f"{name}.png" for name in LAYOUTS]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_scenario_in_which_all_failed_has_its_plot(tmp_path: Path) -> None:
    """An empty one, beside the others' plots."""
    failed = Row("chats", "8 users", OURS, 0, Outcome({}, 1, {"timeout": 1}))
    assert len(write_plots(results(rate(OURS, 0, 80.0), failed), tmp_path)) == 2


def test_a_server_has_its_colour_in_every_plot() -> None:
    """Whoever stands beside it, and no two in a plot have the same."""
    second, third = f"{LLAMA_SERVER} --flash-attn off", "--kv_cache=other"
    alone = colours_of([LLAMA_SERVER])
    beside = colours_of([OURS, third, LLAMA_SERVER, second, "another"])
    assert beside[LLAMA_SERVER] == alone[LLAMA_SERVER]
    assert colours_of([second])[second] == beside[second]
    assert len(set(beside.values())) == len(beside)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_scenario_has_its_table(name: str) -> None:
    """A line for each case and server."""
    given = every_scenario()
    table = scenario_table(given, name)
    assert len(table.splitlines()) >= 2 + len(given.by_case(name))
