"""An environment for LiteLLM alone, from a lock with hashes: it is measured, never depended on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from bootstrap import pins, pip, process, tools
from bootstrap.cache import Cache
from bootstrap.errors import CommandFailed
from bootstrap.lock import exclusive
from bootstrap.progress import Progress

LOCK = Path(__file__).with_name("litellm.txt")
# These two carried a thief of credentials.
FORBIDDEN = frozenset({"1.82.7", "1.82.8"})


def ensure(cache: Cache, environ: Mapping[str, str]) -> Path:
    """Return LiteLLM's program, installed when it is missing; raises BootstrapError."""
    place = cache.tools / f"litellm-{sys.version_info.major}.{sys.version_info.minor}-{_digest()}"
    progress = Progress("litellm")
    with exclusive(cache.lock(place.name), progress):
        is_complete = place / "complete"
        if not is_complete.exists():
            progress.say(f"making an environment for LiteLLM {version()}")
            _install(place, cache, environ)
            is_complete.touch()
            progress.finish("ready")
    return place / "bin" / "litellm"


def version() -> str:
    """Return the version that is pinned."""
    [pin] = [pin for pin in pins.parse(LOCK.read_text(encoding="utf-8")) if pin.name == "litellm"]
    return pin.version


def _digest() -> str:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]


def _install(place: Path, cache: Cache, environ: Mapping[str, str]) -> None:
    log = cache.log("litellm")
    # The interpreter is that of the project, but nothing of .venv is seen from there.
    command: list[str | Path] = [tools.PYTHON, "-m", "venv", "--without-pip", "--clear", place]
    try:
        process.run("making LiteLLM's environment", command, process.clean(environ), log)
    except CommandFailed as failure:
        raise pip.explain(failure, ()) from failure
    requirements: list[str | Path] = ["install", "--require-hashes", "--no-deps"]
    requirements += ["--only-binary", ":all:", "--requirement", LOCK]
    python = place / "bin" / "python"
    pip.run("installing LiteLLM", requirements, python=python, environ=environ, log=log)
