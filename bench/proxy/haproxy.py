"""Finds an haproxy: on the PATH, or unpacked from the distribution's package without being root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_SECONDS = 120.0
_PLACES = ("/usr/sbin", "/usr/local/sbin")
# What runs every program already: another one beside it would not fit the system's loader.
_NEVER_UNPACKED = frozenset({"libc6", "libgcc-s1"})


class NotFound(Exception):
    """There is no haproxy, and none could be fetched; the text says why."""


@dataclass(frozen=True)
class Haproxy:
    """A program that runs, and what its environment needs."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def version(self) -> str:
        """Return the version that it states; raises NotFound where it does not run."""
        text = _output([self.path, "-v"], environment=self.environment)
        found = re.search(r"version (\S+)", text)
        return found[1] if found else "of an unknown version"


def find(tools: Path, environ: Mapping[str, str]) -> Haproxy:
    """Return the haproxy on the PATH, or else the one in the folder `tools`, fetched if need be.

    Raises NotFound.
    """
    path = os.pathsep.join([environ.get("PATH", ""), *_PLACES])
    if program := shutil.which("haproxy", path=path):
        return Haproxy(Path(program))
    root = tools / "haproxy-from-package"
    if not root.is_dir():
        _fetch(tools, root)
    return _unpacked(root)


def _fetch(tools: Path, root: Path) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise NotFound(f"no haproxy on the PATH, and no {program} to fetch its package with")
    tools.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tools, prefix=".haproxy-") as scratch:
        packages = _Packages(Path(scratch))
        packages.unpack("haproxy")
        if missing := _missing_libraries(_unpacked(packages.root)):
            for name in packages.libraries_of("haproxy"):
                packages.unpack(name)
            missing = _missing_libraries(_unpacked(packages.root))
            if missing:
                raise NotFound(f"the package's haproxy lacks {', '.join(missing)}")
        _unpacked(packages.root).version()
        packages.root.rename(root)


class _Packages:
    """Packages of the distribution, fetched and unpacked in a folder; nothing is installed."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._folder = folder
        options = {"Dir::State::lists": folder / "lists", "Dir::Cache": folder / "cache"}
        for place in options.values():
            (place / "partial").mkdir(parents=True)
        (options["Dir::Cache"] / "archives" / "partial").mkdir(parents=True)
        self._options = [f"-o{name}={place}" for name, place in options.items()]
        self._options += ["-oDebug::NoLocking=1", "-oAPT::Sandbox::User="]
        _output(["apt-get", *self._options, "-qq", "update"])

    def unpack(self, name: str) -> None:
        """Fetch a package and unpack it; raises NotFound."""
        _output(["apt-get", *self._options, "-qq", "download", name], folder=self._folder)
        for package in self._folder.glob("*.deb"):
            _output(["dpkg-deb", "-x", package, self.root])
            package.unlink()

    def libraries_of(self, name: str) -> list[str]:
        """Return the packages with libraries that a package depends on, and those on others."""
        text = _output(["apt-cache", *self._options, "depends", "--recurse", "--important", name])
        found = re.findall(r"^\s*(?:Pre)?Depends: (lib\S+)", text, re.MULTILINE)
        return [package for package in dict.fromkeys(found) if package not in _NEVER_UNPACKED]


def _unpacked(root: Path) -> Haproxy:
    program = root / "usr" / "sbin" / "haproxy"
    if not program.exists():
        raise NotFound(f"there is no haproxy below {root}")
    folders = {str(path.parent) for path in root.glob("**/lib*.so*") if "share" not in path.parts}
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(sorted(folders))} if folders else {}
    return Haproxy(program, environment)


def _missing_libraries(haproxy: Haproxy) -> list[str]:
    text = _output(["ldd", haproxy.path], environment=haproxy.environment)
    return re.findall(r"(\S+) => not found", text)


def _output(
    command: list[str | Path],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    try:
        result = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout).strip()[-300:]
        raise NotFound(f"{command[0]} failed: {reason}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFound(f"{command[0]} failed: {error}") from error
    return result.stdout
