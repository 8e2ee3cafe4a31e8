"""What is done to an environment, and when nothing is."""

from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap import environment, tools, wheel
from bootstrap.cache import Cache
from bootstrap.environment import Contents, Environment, Plan, plan, read_stamp, write_stamp

RUNTIME = Contents(
    place="/repository/.venv",
    python="cpython 3.11.7 /usr",
    locks={"predictor": "1", "proxy": "1"},
    wheel="a.whl 1 1",
    projects={"protocol": "1"},
)
DEV = replace(RUNTIME, locks={**RUNTIME.locks, "dev": "1"})


def test_nothing_changed_nothing_done() -> None:
    """An environment that is as it should be is left alone."""
    assert plan(RUNTIME, RUNTIME).is_empty


def test_larger_profile_serves_the_smaller() -> None:
    """Serving from an environment made for tests needs nothing more."""
    assert plan(DEV, RUNTIME).is_empty


def test_larger_profile_is_added() -> None:
    """Testing in an environment made for serving installs only what is missing."""
    assert plan(RUNTIME, DEV) == Plan(remake=False, locks=("dev",), wheel=False, projects=False)


@pytest.mark.parametrize(
    "have",
    [
        None,
        replace(RUNTIME, python="cpython 3.12.1 /usr"),
        replace(RUNTIME, python="cpython 3.11.7 /opt"),
        replace(RUNTIME, place="/moved/.venv"),
        replace(RUNTIME, locks={"predictor": "0", "proxy": "1"}),
    ],
    ids=["half-made", "another version", "another interpreter", "moved", "changed pins"],
)
def test_environment_is_made_anew(have: Contents | None) -> None:
    """What cannot be trusted or would keep old packages is made from nothing."""
    expected = Plan(remake=True, locks=("predictor", "proxy"), wheel=True, projects=True)
    assert plan(have, RUNTIME) == expected


def test_changed_development_pins_do_not_stop_serving() -> None:
    """Serving does not care for pins that only tests need."""
    assert plan(replace(DEV, locks={**DEV.locks, "dev": "0"}), RUNTIME).is_empty


def test_new_wheel_is_installed_alone() -> None:
    """Another wheel changes nothing else."""
    expected = Plan(remake=False, locks=(), wheel=True, projects=False)
    assert plan(replace(RUNTIME, wheel="b.whl 1 1"), RUNTIME) == expected


def test_changed_distribution_is_installed_alone() -> None:
    """A change in a pyproject.toml makes the local distributions be installed again."""
    expected = Plan(remake=False, locks=(), wheel=False, projects=True)
    assert plan(replace(RUNTIME, projects={"protocol": "0"}), RUNTIME) == expected


def test_stamp_is_read_back(tmp_path: Path) -> None:
    """What is written is what is read."""
    write_stamp(tmp_path / "stamp.json", DEV)
    assert read_stamp(tmp_path / "stamp.json") == DEV


@pytest.mark.parametrize("text", ["", "{", "[]", '{"place": "x"}', '{"unknown": 1}', "\x00"])
def test_unreadable_stamp_counts_as_none(tmp_path: Path, text: str) -> None:
    """A stamp that was cut short, or that an older version wrote, means a new environment."""
    stamp = tmp_path / "stamp.json"
    stamp.write_text(text, encoding="utf-8")
    assert read_stamp(stamp) is None


class Steps:
    """Stands for the steps of making an environment, and can fail at one of them."""

    def __init__(self, place: Path, failing: str | None = None) -> None:
        self.place = place
        self.failing = failing
        self.done: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("_create", "_install_locks", "_install_wheel", "_install_projects"):
            monkeypatch.setattr(Environment, name, self._step(name))

    def _step(self, name: str) -> object:
        def step(*_: object) -> None:
            if name == self.failing:
                raise RuntimeError(name)
            if name == "_create":
                (self.place / "bin").mkdir(parents=True, exist_ok=True)
                (self.place / "bin" / "python").touch()
            self.done.append(name)

        return step


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wheel_file = tmp_path / "a.whl"
    wheel_file.touch()
    monkeypatch.setattr(wheel, "ensure", lambda *_: wheel_file)
    monkeypatch.setattr(tools, "ensure", lambda *_: tmp_path)
    monkeypatch.setattr(environment, "_project_digest", lambda name: name)
    return tmp_path / ".venv"


def test_second_run_does_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made once is found the next time."""
    steps = Steps(place)
    steps.install(monkeypatch)
    cache = Cache(place.parent / "cache")
    Environment(place, cache, {}).ensure("runtime")
    assert steps.done == ["_create", "_install_locks", "_install_wheel", "_install_projects"]
    Environment(place, cache, {}).ensure("runtime")
    assert len(steps.done) == 4


@pytest.mark.parametrize("failing", ["_install_locks", "_install_wheel", "_install_projects"])
def test_half_made_environment_is_made_anew(
    place: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Whatever step failed, the next run starts from nothing."""
    cache = Cache(place.parent / "cache")
    Steps(place, failing).install(monkeypatch)
    with pytest.raises(RuntimeError):
        Environment(place, cache, {}).ensure("runtime")
    steps = Steps(place)
    steps.install(monkeypatch)
    Environment(place, cache, {}).ensure("runtime")
    assert steps.done[0] == "_create"


def test_failed_addition_is_made_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that was whole counts as half-made once an addition to it failed."""
    cache = Cache(place.parent / "cache")
    Steps(place).install(monkeypatch)
    Environment(place, cache, {}).ensure("runtime")
    Steps(place, "_install_locks").install(monkeypatch)
    with pytest.raises(RuntimeError):
        Environment(place, cache, {}).ensure("dev")
    steps = Steps(place)
    steps.install(monkeypatch)
    Environment(place, cache, {}).ensure("runtime")
    assert steps.done[0] == "_create"


def test_missing_interpreter_is_noticed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stamp without the interpreter beside it counts for nothing."""
    cache = Cache(place.parent / "cache")
    Steps(place).install(monkeypatch)
    Environment(place, cache, {}).ensure("runtime")
    (place / "bin" / "python").unlink()
    steps = Steps(place)
    steps.install(monkeypatch)
    Environment(place, cache, {}).ensure("runtime")
    assert steps.done[0] == "_create"
