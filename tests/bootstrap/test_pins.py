"""The locks: each requirement pinned by hash, no index address, one version for all."""

import re
import tomllib
from pathlib import Path

import pytest

from bootstrap import pins
from bootstrap.errors import BootstrapError

ROOT = pins.DIRECTORY.parent
LOCKS = sorted(path.stem for path in pins.DIRECTORY.glob("*.txt"))
NAMES = ("bootstrap", "dev", "llama-cpp", "llama-cpp-build", "model", "predictor", "proxy")


def test_all_locks_are_there() -> None:
    """Each .in file has its lock, and there is no other."""
    assert tuple(LOCKS) == NAMES
    assert sorted(path.stem for path in pins.DIRECTORY.glob("*.in")) == LOCKS


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_hashes(name: str) -> None:
    """Nothing is installed whose bytes were not agreed on."""
    read = pins.read(name)
    assert read
    assert [pin.name for pin in read if not pin.hashes] == []
    assert {value.partition(":")[0] for pin in read for value in pin.hashes} == {"sha256"}


@pytest.mark.parametrize("path", sorted(pins.DIRECTORY.iterdir()), ids=lambda path: path.name)
def test_no_index_address(path: Path) -> None:
    """Where packages come from is for each user's pip to know."""
    text = path.read_text(encoding="utf-8")
    assert re.search(r"://|^\s*(-i|-f|--index-url|--extra-index-url|--find-links)\b", text) is None


def test_one_environment_can_hold_all() -> None:
    """What serving and testing share, they share at the same versions."""
    versions: dict[str, set[frozenset[str]]] = {}
    for lock in ("predictor", "proxy", "dev"):
        by_name: dict[str, set[str]] = {}
        for pin in pins.read(lock):
            by_name.setdefault(pin.name, set()).add(pin.version)
        for name, found in by_name.items():
            versions.setdefault(name, set()).add(frozenset(found))
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_proxy_has_neither_kserve_nor_llama_cpp() -> None:
    """The proxy's lock is small on purpose."""
    assert {pin.name for pin in pins.read("proxy")} & {"kserve", "llama-cpp-python"} == set()


@pytest.mark.parametrize(
    ("project", "locks"),
    [
        ("protocol", ("proxy",)),
        ("protocol", ("predictor",)),
        ("edge", ("proxy",)),
        ("edge", ("predictor",)),
        ("proxy", ("proxy",)),
        ("predictor", ("predictor", "llama-cpp")),
    ],
)
def test_distributions_are_covered(project: str, locks: tuple[str, ...]) -> None:
    """Whatever a distribution depends on is in the lock that is installed for it."""
    text = (ROOT / project / "pyproject.toml").read_text(encoding="utf-8")
    needed = {_name(text) for text in tomllib.loads(text)["project"]["dependencies"]}
    pinned = {_name(pin.name) for lock in locks for pin in pins.read(lock)}
    local = {"kserve-llamacpp-protocol", "kserve-llamacpp-edge"}
    assert needed - pinned - local == set()


def test_pins_are_parsed() -> None:
    """Continued lines, extras, markers and comments are understood."""
    text = (
        "# made by a tool\n"
        "uvicorn[standard]==0.54.0 ; python_version < '3.14' \\\n"
        "    --hash=sha256:0a \\\n"
        "    --hash=sha256:0b\n"
        "    # via something\n"
    )
    assert pins.parse(text) == [pins.Pin("uvicorn", "0.54.0", ("sha256:0a", "sha256:0b"))]


@pytest.mark.parametrize("line", ["numpy>=2", "numpy", "./local", "git+ssh://host/x"])
def test_unpinned_is_refused(line: str) -> None:
    """A requirement without an exact version is no lock."""
    with pytest.raises(BootstrapError, match="not a pinned requirement"):
        pins.parse(line)


def test_missing_lock_says_what_to_do() -> None:
    """A lock that is not there is named with the way to make it."""
    with pytest.raises(BootstrapError, match="make lock"):
        pins.digest("no-such-lock")


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()
