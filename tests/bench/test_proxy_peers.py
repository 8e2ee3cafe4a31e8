"""How the peers are found: haproxy by its name, LiteLLM by its lock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.proxy import haproxy, litellm_environment
from bench.proxy.children import Processors
from bootstrap import pins

FAKE = "#!/bin/sh\necho HAProxy version 2.6.12-1+deb12u1 2023/12/16\n"


def test_haproxy_is_found_on_the_path(tmp_path: Path) -> None:
    """The user's own comes first, and says which it is."""
    program = tmp_path / "haproxy"
    program.write_text(FAKE)
    program.chmod(0o755)
    found = haproxy.find(tmp_path / "tools", {"PATH": str(tmp_path)})
    assert (found.path, found.environment) == (program, {})
    assert found.version() == "2.6.12-1+deb12u1"


def test_an_unpacked_haproxy_brings_its_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was fetched before is used again; nothing is fetched."""
    monkeypatch.setattr(haproxy, "_PLACES", ())
    root = tmp_path / "haproxy-from-package"
    (root / "usr" / "sbin").mkdir(parents=True)
    (root / "usr" / "sbin" / "haproxy").write_text(FAKE)
    (root / "usr" / "lib").mkdir()
    (root / "usr" / "lib" / "liblua5.3.so.0").touch()
    found = haproxy.find(tmp_path, {"PATH": ""})
    assert found.path == root / "usr" / "sbin" / "haproxy"
    assert found.environment == {"LD_LIBRARY_PATH": str(root / "usr" / "lib")}


def test_without_haproxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no packages either, it says so, and leaves nothing behind."""
    monkeypatch.setattr(haproxy, "_PLACES", ())
    monkeypatch.setattr(haproxy.shutil, "which", lambda *_, **__: None)
    with pytest.raises(haproxy.NotFound, match="no haproxy on the PATH, and no apt-get"):
        haproxy.find(tmp_path / "tools", {"PATH": ""})
    assert list(tmp_path.iterdir()) == []


def test_litellm_is_pinned_by_hash() -> None:
    """Every package has hashes, and no version that has carried a thief is among them."""
    found = pins.parse(litellm_environment.LOCK.read_text(encoding="utf-8"))
    assert all(pin.hashes for pin in found)
    assert litellm_environment.version() not in litellm_environment.FORBIDDEN
    assert {pin.version for pin in found if pin.name == "litellm"} == {
        litellm_environment.version()
    }


def test_litellm_is_no_dependency() -> None:
    """It is in no other lock, and not in the environment that runs the tests."""
    for lock in pins.DIRECTORY.glob("*.txt"):
        assert "litellm" not in {pin.name for pin in pins.read(lock.stem)}
    assert "litellm" not in sys.modules


@pytest.mark.parametrize(
    ("available", "shared"),
    [
        ([3], ("-", "-", "-")),
        ([0, 1], ("0", "1", "1")),
        ([2, 4, 6, 8], ("2", "4", "6")),
    ],
)
def test_what_is_measured_has_a_processor_for_itself(
    available: list[int], shared: tuple[str, str, str]
) -> None:
    """The two ends share one where there are only two; with one, all do."""
    assert Processors.share_out(available) == Processors(*shared)
