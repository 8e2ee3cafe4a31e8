"""This commit beside an older one: ratios of rounds, promises, whose code a server runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.against import STREAMS
from bench.checkouts import (
    NEW,
    OLD,
    ROOT,
    Promise,
    comparisons,
    comparisons_table,
    environment,
)
from bench.figures import Outcome
from bench.proxy.layouts import ANSWERS, CHUNKS
from bench.results import Results, Row
from bench.servers import ServerFailed

CPU = Promise(ANSWERS, "cpu_us", at_most=1.05)
RATE = Promise(STREAMS, "tokens_per_second", at_least=0.97)


def measured(promise: Promise, new: list[float], old: list[float]) -> Results:
    """Results with one figure of each round."""
    rows = [
        Row(promise.scenario, "one", server, turn, Outcome({promise.figure: value}, 1))
        for server, values in ((NEW, new), (OLD, old))
        for turn, value in enumerate(values)
    ]
    return Results("a machine", {}, rows)


@pytest.mark.parametrize(
    ("promise", "new", "is_kept"),
    [
        (CPU, [104.0, 300.0, 10.0], True),
        (CPU, [106.0, 300.0, 10.0], False),
        (RATE, [98.0, 10.0, 300.0], True),
        (RATE, [96.0, 10.0, 300.0], False),
    ],
)
def test_median_of_the_rounds_decides(promise: Promise, new: list[float], is_kept: bool) -> None:
    """A promise holds for the median of the rounds' ratios, whatever a single round gave."""
    (found,) = comparisons(measured(promise, new, [100.0] * 3), [promise])
    assert found.is_kept is is_kept
    assert ("NO" in comparisons_table([found])) is not is_kept


def test_rounds_that_only_one_has_are_left_out() -> None:
    """A round of one commit alone has no ratio; without any there is nothing to compare."""
    (found,) = comparisons(measured(CPU, [100.0, 900.0], [100.0]), [CPU])
    assert found.ratios == (1.0,)
    assert comparisons(measured(CPU, [100.0], []), [CPU]) == []


def test_server_runs_the_code_of_a_checkout(tmp_path: Path) -> None:
    """The modules come from the folder that was given, also where it lacks a distribution."""
    for name in ("predictor", "proxy/openai_proxy"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proxy/openai_proxy/__init__.py").write_text("print('old')", encoding="utf-8")
    variables = {**os.environ, **environment(tmp_path)}
    command = [sys.executable, "-c", "import openai_proxy, openai_protocol"]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert result.stdout == "old\n"


def test_folder_that_is_no_checkout(tmp_path: Path) -> None:
    """It is refused with a sentence that names the flag."""
    with pytest.raises(ServerFailed, match=r"--old .* is no checkout of this project"):
        environment(tmp_path)


def test_a_small_run() -> None:
    """The proxy beside itself: every load is put on both, and each has its line."""
    command = [sys.executable, "-m", "bench.proxy", "against", "--rounds=1", "--seconds=0.1"]
    result = subprocess.run(
        [*command, f"--old={ROOT}"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode in {0, 1}, result.stderr  # so short a load says nothing of the ratios
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[3:]] == [ANSWERS] * 4 + [CHUNKS] * 2
