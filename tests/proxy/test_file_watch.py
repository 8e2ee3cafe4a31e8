"""Files that are replaced while the proxy runs: when they are read again."""

from __future__ import annotations

from pathlib import Path

from openai_proxy.file_watch import Reloaded


def test_files_are_looked_at_once_a_second(tmp_path: Path) -> None:
    """A changed file is seen after a second, or at once where that is asked for."""
    now = 0.0
    path = tmp_path / "secret"
    path.write_text("one")
    value = Reloaded([path], path.read_text, clock=lambda: now)
    path.write_text("three")
    assert value.value() == "one"
    assert value.value(now=True) == "three"
    path.write_text("fourteen")
    now = 1.0
    assert value.value() == "fourteen"


def test_a_failure_is_told_once(tmp_path: Path) -> None:
    """A file that is of no use is told of once, tried again, and used as soon as it is."""
    path = tmp_path / "secret"
    path.write_text("1")
    errors: list[str] = []
    value = Reloaded(
        [path], lambda: int(path.read_text()), on_failure=lambda error: errors.append(str(error))
    )
    path.write_text("no number")
    assert [value.value(now=True) for _ in range(3)] == [1, 1, 1]
    assert len(errors) == 1
    path.write_text("22")
    assert value.value(now=True) == 22
