"""The chart's values as its values.yaml documents them, and the table that the README makes of it.

    python -m tests.chart.values

writes the table into the README anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "kserve-llamacpp"
README = CHART / "README.md"
VALUES = CHART / "values.yaml"
_BEGIN, _END = "<!-- values -->\n", "<!-- end of values -->\n"
_KEY = re.compile(r"( *)([\w.-]+):(?: |$)")
_TEXT = re.compile(r" *# ?(--)? ?(.*)")
_SHOWN = 40


@dataclass(frozen=True)
class Value:
    """A documented value: where it is, what it is by default, what it means."""

    path: tuple[str, ...]
    default: Any
    text: str


@cache
def load() -> dict[str, Any]:
    """Return the defaults."""
    loaded = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@cache
def documented() -> list[Value]:
    """Return all values with a comment that begins with `# --`, in their order."""
    found = []
    place: list[tuple[int, str]] = []
    text: list[str] = []
    for line in VALUES.read_text(encoding="utf-8").splitlines():
        if match := _TEXT.fullmatch(line):
            if match[1]:
                text = [match[2]]
            elif text:
                text.append(match[2])
        elif match := _KEY.match(line):
            indent = len(match[1])
            place = [*(step for step in place if step[0] < indent), (indent, match[2])]
            if text:
                path = tuple(name for _, name in place)
                found.append(Value(path, _at(path), " ".join(text)))
            text = []
        else:
            text = []
    return found


def undocumented() -> list[str]:
    """Return the values that neither have a comment nor are part of one that has."""
    known = {value.path for value in documented()}

    def missing(value: Any, path: tuple[str, ...]) -> list[str]:
        if path in known:
            return []
        if isinstance(value, dict) and value:
            return [name for key, held in value.items() for name in missing(held, (*path, key))]
        return [".".join(path)]

    return missing(load(), ())


def table() -> str:
    """Return the README's table."""
    rows = ["| value | default | what |", "| --- | --- | --- |"]
    for value in documented():
        default = json.dumps(value.default)
        shown = f"`{default}`" if len(default) <= _SHOWN else "see values.yaml"
        rows.append(f"| `{'.'.join(value.path)}` | {shown} | {value.text} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str) -> str:
    """Return the README with the table in its place."""
    before, rest = readme.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.split(_END)[1]}"


def _at(path: tuple[str, ...]) -> Any:
    value: Any = load()
    for step in path:
        value = value[step]
    return value


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
