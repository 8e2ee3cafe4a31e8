"""Who is asked with what, and when it is saved: over servers that are gone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import servers
from bench.prompts import Prompts
from bench.results import Results
from bench.runner import DEFAULT_MODE, DETERMINISTIC_MODE, Runner
from bench.servers import Setup, Target
from bench.sizes import QUICK

SIZES = dataclasses.replace(QUICK, rounds=2, clients=(1, 4, 8))


async def test_both_modes_are_asked_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of ours has one flag more than the other; no load has more clients than slots."""
    given: dict[str, tuple[str, ...]] = {}

    @contextlib.contextmanager
    def ours(setup: Setup, name: str) -> Iterator[Target]:
        given[name] = setup.our_args
        yield Target(name, "http://127.0.0.1:9/v1")

    monkeypatch.setattr(servers, "ours", ours)
    results = Results("a machine", {})
    saved: list[int] = []
    runner = Runner(results, SIZES, Prompts(1), lambda: saved.append(len(results.rows)))
    await runner.on_deterministic_mode(Setup(Path("m.gguf"), 1024, 4, 1, ("--x",)))
    assert given == {DEFAULT_MODE: ("--x",), DETERMINISTIC_MODE: ("--x", "--deterministic")}
    both = [DEFAULT_MODE, DETERMINISTIC_MODE]
    assert [(row.round, row.case, row.server) for row in results.rows] == [
        (turn, case, server)
        for turn in (0, 1)
        for case in ("1 client", "4 clients")
        for server in (both if turn == 0 else reversed(both))
    ]
    assert saved == [1, 2, 3, 4, 5, 6, 7, 8], "a run that is cut off loses a row at most"
