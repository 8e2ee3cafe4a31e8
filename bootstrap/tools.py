"""Tools that make environments and wheels, kept in the cache, apart from what they make."""

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bootstrap import pins, pip
from bootstrap.cache import Cache
from bootstrap.lock import exclusive
from bootstrap.progress import Progress

# Not sys.executable: that may be the .venv that is about to be made anew, when it is activated.
PYTHON = Path(getattr(sys, "_base_executable", sys.executable))


def ensure(name: str, cache: Cache, environ: Mapping[str, str], progress: Progress) -> Path:
    """The directory with the modules of a lock for this interpreter; installed when missing."""
    # The version of Python belongs to it, since a lock may hold other packages for another.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    final = cache.tools / f"{name}-{version}-{pins.digest(name)[:16]}"
    if final.is_dir():
        return final
    with exclusive(cache.lock(final.name), progress):
        if not final.is_dir():
            progress.say(f"installing the tools in requirements/{name}.txt")
            _install(name, final, cache, environ)
    return final


def _install(name: str, final: Path, cache: Cache, environ: Mapping[str, str]) -> None:
    cache.tools.mkdir(parents=True, exist_ok=True)
    for leftover in cache.tools.glob(f".{final.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache.tools, prefix=f".{final.name}-") as scratch:
        target = Path(scratch) / "modules"
        pip.run(
            f"installing requirements/{name}.txt",
            [
                "install",
                "--target",
                target,
                "--require-hashes",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--requirement",
                pins.path(name),
            ],
            python=PYTHON,
            environ=environ,
            log=cache.log(f"tools-{name}"),
        )
        # A directory that bears its name is whole: it gets the name last.
        target.rename(final)
