"""The command as a whole: ours and the bare pass-through, few requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.proxy.layouts import ANSWERS, CHUNKS, LAYOUTS, OPEN, PACED, START
from bench.proxy.peers import BARE, RAW
from bench.results import read_results
from bench.servers import OURS

SMALL = [
    *("--quick", "--warm-up-seconds=0.05", "--measure-seconds=0.2", "--paced-streams=5"),
    *("--paced-seconds=0.3", "--open-streams=5", "--open-seconds=1"),
]


def test_a_small_run(tmp_path: Path) -> None:
    """Every load is put on ours and on its peers, nothing fails; table and plot show the file."""
    file = tmp_path / "results.json"
    printed = bench("run", *SMALL, f"--json={file}").stdout
    results = read_results(file)
    assert results.scenarios == list(LAYOUTS)
    for name in (ANSWERS, CHUNKS, PACED):
        assert {server for _, server in results.by_case(name)} == {RAW, OURS, BARE}
    for name in (START, OPEN):
        assert {server for _, server in results.by_case(name)} == {OURS, BARE}
    assert results.num_failed == 0
    for row in results.rows:
        assert row.outcome.figures.get("requests_per_second", 1) > 0
        assert row.outcome.figures.get("lost", 0) == 0
        assert row.outcome.figures.get("rss_mib", 20) > 10
    assert "What is promised" in printed
    assert bench("table", str(file)).stdout == printed
    assert len(bench("plot", str(file), str(tmp_path)).stdout.splitlines()) == len(LAYOUTS)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["answer"], "no load is called answer: choose from answers, "),
        (["--peers=nginx"], "no peer is called nginx: choose from haproxy, "),
    ],
)
def test_what_cannot_be_measured(args: list[str], complaint: str) -> None:
    """A name that means nothing is refused before anything starts."""
    assert complaint in bench("run", *args, status=2).stderr


def test_too_few_open_files() -> None:
    """Where the limit is too low, it is a sentence with the numbers, before anything starts."""
    command = f"ulimit -n 512; exec {sys.executable} -m bench.proxy run --quick --open-streams=900"
    result = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert "900 streams need 2056 open files in one process, and the limit is 512" in result.stderr


def test_a_file_that_holds_no_results(tmp_path: Path) -> None:
    """It is a sentence, not a stack trace."""
    file = tmp_path / "results.json"
    file.write_text("{}")
    assert bench("table", str(file), status=1).stderr.startswith("bench: ")


def bench(*args: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it to its end, and check its status."""
    command = [sys.executable, "-m", "bench.proxy", *args]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result
