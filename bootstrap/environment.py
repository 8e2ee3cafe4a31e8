"""The virtual environment `.venv`: made from locks, and told apart from a half-made one."""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bootstrap import pins, pip, process, tools, wheel
from bootstrap.cache import Cache
from bootstrap.errors import BootstrapError, CommandFailed
from bootstrap.lock import exclusive
from bootstrap.progress import Progress, pip_requirement

ROOT = Path(__file__).resolve().parent.parent
TOOLS = "bootstrap"
PROFILES = {"runtime": ("predictor", "proxy"), "dev": ("predictor", "proxy", "dev")}
PROJECTS = ("protocol", "edge", "predictor", "proxy")


@dataclass(frozen=True)
class Contents:
    """What an environment is made of: its place, its interpreter, and the digests of its parts."""

    place: str
    python: str
    locks: dict[str, str]
    wheel: str
    projects: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """The steps from what an environment holds to what it should hold."""

    remake: bool
    locks: tuple[str, ...]
    wheel: bool
    projects: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.remake or self.locks or self.wheel or self.projects)


def plan(have: Contents | None, want: Contents) -> Plan:
    """What must be done; changed pins mean a new environment, so that no old package stays."""
    if (
        have is None
        or (have.place, have.python) != (want.place, want.python)
        or any(have.locks.get(name, digest) != digest for name, digest in want.locks.items())
    ):
        return Plan(remake=True, locks=tuple(want.locks), wheel=True, projects=True)
    return Plan(
        remake=False,
        locks=tuple(name for name in want.locks if name not in have.locks),
        wheel=have.wheel != want.wheel,
        projects=have.projects != want.projects,
    )


def read_stamp(path: Path) -> Contents | None:
    """What an environment holds; None when it is missing, half-made or not ours."""
    try:
        return Contents(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_stamp(path: Path, contents: Contents) -> None:
    """Note what an environment holds, in one step."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(asdict(contents), indent=2) + "\n", encoding="utf-8")
    scratch.replace(path)


class Environment:
    """The environment at a place; changed by one process at a time, which holds its lock."""

    def __init__(self, place: Path, cache: Cache, environ: Mapping[str, str]) -> None:
        self._place = place
        self._cache = cache
        self._environ = environ
        self._stamp = place / "bootstrap.json"
        self._progress = Progress("environment")

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self._place / "bin" / "python"

    def ensure(self, profile: str) -> None:
        """Bring it to a profile; nothing is done when it is there already."""
        wheel_file = wheel.ensure(self._cache, self._environ)
        want = self._wanted(profile, wheel_file)
        if plan(self._held(), want).is_empty:
            return
        name = hashlib.sha256(os.fsencode(self._place)).hexdigest()[:16]
        with exclusive(self._cache.lock(f"environment-{name}"), self._progress):
            # Another process may have done it while this one waited.
            have = self._held()
            steps = plan(have, want)
            if not steps.is_empty:
                self._follow(steps, have, want, wheel_file)

    def _wanted(self, profile: str, wheel_file: Path) -> Contents:
        status = wheel_file.stat()
        return Contents(
            place=os.fspath(self._place),
            python=f"{sys.implementation.name} {platform.python_version()} {sys.base_prefix}",
            locks={name: pins.digest(name) for name in PROFILES[profile]},
            wheel=f"{wheel_file} {status.st_size} {status.st_mtime_ns}",
            projects={name: _project_digest(name) for name in PROJECTS},
        )

    def _held(self) -> Contents | None:
        return read_stamp(self._stamp) if self.python.exists() else None

    def _follow(self, steps: Plan, have: Contents | None, want: Contents, wheel_file: Path) -> None:
        # Without its stamp an environment counts as half-made, whatever happens from here on.
        self._stamp.unlink(missing_ok=True)
        modules = tools.ensure(TOOLS, self._cache, self._environ, self._progress)
        if steps.remake:
            self._create(modules)
        if steps.locks:
            self._install_locks(steps.locks)
        if steps.wheel:
            self._install_wheel(wheel_file)
        if steps.projects:
            self._install_projects(modules)
        kept = {} if have is None or steps.remake else have.locks
        write_stamp(self._stamp, replace(want, locks=kept | want.locks))
        self._progress.finish(f"ready: {self._place}")

    def _create(self, modules: Path) -> None:
        self._progress.say(f"making it with Python {platform.python_version()}")
        try:
            if self._place.exists():
                shutil.rmtree(self._place)
        except OSError as error:
            raise BootstrapError(
                f"{self._place} cannot be removed ({error.strerror or error}): remove it by hand"
            ) from error
        command: list[str | Path] = [tools.PYTHON, "-m", "virtualenv", "--python", tools.PYTHON]
        command += ["--no-seed", "--no-periodic-update"]
        command += ["--app-data", self._cache.root / "virtualenv", self._place]
        environ = {
            name: value
            for name, value in process.clean(self._environ).items()
            if not name.startswith("VIRTUALENV_")
        }
        log = self._cache.log("virtualenv")
        try:
            process.run(
                "making the virtual environment",
                command,
                environ | {"PYTHONPATH": os.fspath(modules)},
                log,
            )
        except CommandFailed as failure:
            raise pip.explain(failure, ()) from failure

    def _install_locks(self, names: tuple[str, ...]) -> None:
        total = len({pin.name for name in names for pin in pins.read(name)})
        self._progress.say(f"installing {total} packages")
        files: list[str | Path] = []
        for name in names:
            files += ["--requirement", pins.path(name)]
        seen: set[str] = set()

        def show(line: str) -> None:
            if requirement := pip_requirement(line):
                seen.add(requirement)
                self._progress.update("fetching packages", min(len(seen), total), total)
            elif line.startswith("Installing collected packages"):
                self._progress.say("unpacking them")

        self._pip(
            "installing packages",
            ["--require-hashes", "--no-deps", "--only-binary", ":all:", *files],
            on_line=show,
        )

    def _install_wheel(self, wheel_file: Path) -> None:
        self._pip(
            "installing llama-cpp-python",
            ["--no-deps", "--no-index", "--force-reinstall", wheel_file],
        )

    def _install_projects(self, modules: Path) -> None:
        editables: list[str | Path] = []
        for name in PROJECTS:
            editables += ["--editable", ROOT / name]
        self._pip(
            "installing the local distributions",
            ["--no-deps", "--no-index", "--no-build-isolation", *editables],
            modules=modules,
        )

    def _pip(
        self,
        task: str,
        arguments: list[str | Path],
        modules: Path | None = None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        pip.run(
            task,
            ["install", *arguments],
            python=self.python,
            environ=self._environ,
            log=self._cache.log(task.replace(" ", "-")),
            modules=modules,
            on_line=on_line,
        )


def _project_digest(name: str) -> str:
    file = ROOT / name / "pyproject.toml"
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise BootstrapError(f"{file} cannot be read: restore it") from error
