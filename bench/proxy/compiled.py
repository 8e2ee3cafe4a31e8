"""Compiles the programs in wire/: upstream, client, and what binds a child to its parent."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.servers import ServerFailed

SOURCES = Path(__file__).with_name("wire")
PROGRAMS = ("upstream", "client", "child")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Wire:
    """The compiled programs."""

    upstream: Path
    client: Path
    child: Path


def compile_wire(cache: Path, environ: Mapping[str, str]) -> Wire:
    """Return the programs, compiled with `CC` (`cc`) unless the cache has them from these sources.

    Raises ServerFailed.
    """
    compiler = shlex.split(environ.get("CC") or "cc")
    folder = cache / f"bench-wire-{_digest(compiler)}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".bench-wire-") as scratch:
            new = Path(scratch) / "programs"
            new.mkdir()
            for name in PROGRAMS:
                _compile([*compiler, *FLAGS, "-o", str(new / name), str(SOURCES / f"{name}.c")])
            _keep(new, folder)
    return Wire(*(folder / name for name in PROGRAMS))


def _digest(compiler: list[str]) -> str:
    found = hashlib.sha256("\0".join([*compiler, *FLAGS, os.uname().machine]).encode())
    for path in sorted(SOURCES.iterdir()):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _compile(command: list[str]) -> None:
    try:
        result = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=120
        )
    except OSError as error:
        raise ServerFailed(
            f"the load generator needs a C compiler, and {command[0]} cannot be run "
            f"({error.strerror}): install one, or name it in CC"
        ) from error
    if result.returncode:
        raise ServerFailed(f"{shlex.join(command)} failed:\n{result.stderr[-2000:]}")


def _keep(new: Path, folder: Path) -> None:
    """Give a whole folder its name; another run may have been faster."""
    try:
        new.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
