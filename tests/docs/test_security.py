"""The tables of bounds in docs/security.md name settings that exist, with their defaults."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kserve import model_server

from kserve_llamacpp.config import add_flags as add_predictor_flags
from openai_proxy.config.settings import Settings
from tests.chart import values

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
COLUMNS = ["bound", "setting", "default", "past it"]
NUM_AREAS = 9
IS_BOUND = re.compile(r"(^|_)(max|limit|timeout|allowed)(_|$)")
# What these bound is no client's doing, or a table of another page has them.
NO_BOUNDS = {
    "allowed_models",
    "backend_startup_timeout",
    "cors_max_age_seconds",
    "default_max_tokens",
    "grpc_max_send_message_length",
    "log_file_max_bytes",
    "max_asyncio_workers",  # KServe's own, not used
    "max_threads",
    "max_tokens_limit",
    "predictor_request_timeout_seconds",
}


@dataclass(frozen=True)
class Row:
    """One row of a table of bounds."""

    area: str
    bound: str
    settings: tuple[str, ...]
    default: str
    past: str


@cache
def rows() -> tuple[Row, ...]:
    """Return the rows of all tables in the section "Bounds"."""
    section = SECURITY.read_text(encoding="utf-8").split("\n## Bounds\n")[1].split("\n## ")[0]
    return tuple(row for part in section.split("\n### ")[1:] for row in rows_of(part))


def rows_of(part: str) -> Iterator[Row]:
    area, *lines = part.splitlines()
    table = [
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    assert table[0] == COLUMNS, area
    for bound, setting, default, past in table[2:]:
        yield Row(area, bound, tuple(re.findall(r"`([^`]+)`", setting)), default, past)


@cache
def defaults() -> dict[str, Any]:
    """Return the default of each flag, of the predictor with KServe's own, and of the proxy."""
    parser = argparse.ArgumentParser(parents=[model_server.parser], add_help=False)
    add_predictor_flags(parser)
    found = {action.option_strings[0]: action.default for action in parser._actions}
    for name, field in Settings.model_fields.items():
        found[f"--{name.replace('_', '-')}"] = field.get_default(call_default_factory=True)
    return found


@cache
def chart_values() -> frozenset[str]:
    """Return the path of each value of the chart, and of what holds it."""
    paths = [value.path for value in values.documented()]
    return frozenset(".".join(path[:end]) for path in paths for end in range(1, len(path) + 1))


def spellings(value: float) -> list[str]:
    """Return how a table may write a number."""
    found = [f"{value:g}", str(value)]
    for unit, size in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)):
        if value and value % size == 0:
            found.append(f"{value // size:g} {unit}")
    return found


@pytest.mark.parametrize(
    "row", [row for row in rows() if row.settings], ids=lambda row: row.settings[0]
)
def test_settings_of_a_bound(row: Row) -> None:
    """Each setting that the table names is a flag or a value of the chart, with that default."""
    for name in row.settings:
        assert name in (defaults() if name.startswith("--") else chart_values()), name
        default = defaults().get(name)
        if type(default) in (int, float) and default > 0:
            words = [row.default, *re.findall(r"[\w.]+(?: [KMG]iB)?", row.default)]
            assert any(spelling in words for spelling in spellings(default)), (name, default)


def test_every_row_says_what_happens_past_the_bound() -> None:
    """No cell but that of the setting is empty."""
    assert len({row.area for row in rows()}) == NUM_AREAS
    for row in rows():
        assert row.bound, row
        assert row.default, row
        assert row.past, row


def test_every_bound_has_its_row() -> None:
    """The settings whose names say that they bound something all stand in a table."""
    named = {name for row in rows() for name in row.settings}

    for flag in defaults():
        name = flag.strip("-").replace("-", "_")
        if IS_BOUND.search(name) and name not in NO_BOUNDS:
            assert flag in named, flag
