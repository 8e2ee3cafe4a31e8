"""The command as a whole, with the real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.engine_rate import ENGINE
from bench.results import read_results
from bench.runner import KV_LAYOUTS, OVERHEAD
from bench.servers import OURS
from bench.step_times import SETTINGS
from tests.processes import NUM_THREADS

THREADS = f"--threads={NUM_THREADS}"
SMALL = ["--rounds=1", "--clients=1", "--requests=2", "--max-tokens=4", "--decode-steps=4", THREADS]


@pytest.mark.model
@pytest.mark.timeout(300)  # a server and two engines, on cores that others may be using
def test_a_small_run(model_path: Path, tmp_path: Path) -> None:
    """Our server and our engine are measured; table and plot show the file's figures."""
    file = tmp_path / "results.json"
    where = [f"--model={model_path}", "--n-ctx=1024", f"--json={file}"]
    printed = bench("run", "distinct", OVERHEAD, *SMALL, *where).stdout
    results = read_results(file)
    assert [(row.scenario, row.server) for row in results.rows] == [
        ("distinct", OURS),
        (OVERHEAD, ENGINE),
    ]
    assert all(min(row.outcome.figures.values()) >= 0 for row in results.rows)
    assert results.rows[0].outcome.figures["tokens_per_second"] > 0
    assert results.rows[1].outcome.figures["decode_tokens_per_second"] > 0
    assert results.memory_mib[OURS]["at the start"] > 50
    assert any("prefix_cache" in name for name in results.counters["distinct"])
    assert bench("table", str(file)).stdout == printed
    assert len(bench("plot", str(file), str(tmp_path)).stdout.splitlines()) == 2


@pytest.mark.model
@pytest.mark.timeout(300)
def test_steps_under_each_setting(model_path: Path, tmp_path: Path) -> None:
    """A row for each number of sequences and each setting of our engine."""
    file = tmp_path / "results.json"
    sizes = ["--rounds=1", "--clients=1,2", "--contexts=20", "--layout-steps=3", THREADS]
    bench("run", KV_LAYOUTS, *sizes, f"--model={model_path}", f"--json={file}")
    layouts = read_results(file).by_case(KV_LAYOUTS)
    assert list(layouts) == [
        (case, setting)
        for case in ("1 sequence of 20 tokens", "2 sequences of 20 tokens")
        for setting in SETTINGS
    ]
    assert all(outcome.figures["step_ms"] > 0 for [outcome] in layouts.values())


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["distincts"], "no scenario is called distincts: choose from distinct, "),
        (["--llama-server-arg=--flash-attn off"], "--llama-server-arg needs --llama-server"),
        (["--batched-bench-arg=-fa off"], "--batched-bench-arg needs --batched-bench"),
    ],
)
def test_what_cannot_be_measured(args: list[str], complaint: str) -> None:
    """A flag or a name that would do nothing is refused before hours of measuring."""
    assert complaint in bench("run", *args, status=2).stderr


def test_a_file_that_holds_no_results(tmp_path: Path) -> None:
    """It is a sentence, not a stack trace."""
    file = tmp_path / "results.json"
    file.write_text("{}")
    result = bench("table", str(file), status=1)
    assert result.stderr.startswith("bench: ")


def bench(*args: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it to its end, and check its status."""
    command = [sys.executable, "-m", "bench", *args]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result
