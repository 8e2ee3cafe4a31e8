"""What a run gave, as it is written to a file and read back."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.figures import Outcome


@dataclass(frozen=True)
class Row:
    """One round of one case on one server."""

    scenario: str
    case: str
    server: str
    round: int
    outcome: Outcome


@dataclass
class Results:
    """All rows of a run, and on what they were measured."""

    machine: str
    settings: dict[str, object]
    rows: list[Row] = field(default_factory=list)
    memory_mib: dict[str, dict[str, float]] = field(default_factory=dict)
    """By server, then by the moment at which it was measured."""
    counters: dict[str, dict[str, float]] = field(default_factory=dict)
    """By scenario: how far our server's counters of the prefix cache rose."""
    notes: dict[str, str] = field(default_factory=dict)
    """By scenario: what its figures must be read with."""
    client_percent: float = 0.0
    """The load generator's own share of one core, the highest of all rounds."""

    def by_case(self, scenario: str) -> dict[tuple[str, str], list[Outcome]]:
        """Return a scenario's outcomes over the rounds, by case and server, in their order."""
        found: dict[tuple[str, str], list[Outcome]] = {}
        for row in self.rows:
            if row.scenario == scenario:
                found.setdefault((row.case, row.server), []).append(row.outcome)
        cases = list(dict.fromkeys(case for case, _ in found))
        return dict(sorted(found.items(), key=lambda item: cases.index(item[0][0])))

    @property
    def scenarios(self) -> list[str]:
        """The names of the scenarios, in their order."""
        return list(dict.fromkeys(row.scenario for row in self.rows))

    @property
    def num_failed(self) -> int:
        """Requests that failed."""
        return sum(row.outcome.num_failed for row in self.rows)

    def write(self, path: Path) -> None:
        """Write everything as JSON; whoever reads the file meanwhile finds it whole."""
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        new.replace(path)


def read_results(path: Path) -> Results:
    """Read what `Results.write` wrote; raises msgspec.DecodeError, OSError."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def merged(runs: Sequence[Results]) -> Results:
    """Return several runs as one: of each scenario, what the last run that asked it gave."""
    machines = "\n".join(dict.fromkeys(run.machine for run in runs))
    whole = Results(machines, runs[-1].settings)
    for run in runs:
        asked = set(run.scenarios)
        whole.rows = [row for row in whole.rows if row.scenario not in asked] + run.rows
        for name in asked:
            whole.counters.pop(name, None)
            whole.notes.pop(name, None)
        whole.counters |= run.counters
        whole.notes |= run.notes
        for server, moments in run.memory_mib.items():
            whole.memory_mib.setdefault(server, {}).update(moments)
        whole.client_percent = max(whole.client_percent, run.client_percent)
    return whole


def machine() -> str:
    """Return the machine, the date and llama.cpp's version in a line."""
    return f"{hardware()}, llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"


def hardware() -> str:
    """Return the date and the machine in a line."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    today = dt.datetime.now(dt.UTC).date()
    processor = models[0] if models else "processor unknown"
    return f"{today}, {os.cpu_count()} cores ({processor})"
