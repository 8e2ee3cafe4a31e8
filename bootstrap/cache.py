"""The directory that keeps built wheels, models, tools and logs between runs."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootstrap.errors import BootstrapError

VARIABLE = "KSERVE_LLAMACPP_CACHE"


@dataclass(frozen=True)
class Cache:
    """Names the places in the cache directory; whoever writes to one makes it."""

    root: Path

    @property
    def wheels(self) -> Path:
        """Where built wheels are kept, a folder for each key."""
        return self.root / "wheels"

    @property
    def models(self) -> Path:
        """Where fetched models are kept."""
        return self.root / "models"

    @property
    def tools(self) -> Path:
        """Where the tools that make environments and builds are kept."""
        return self.root / "tools"

    def log(self, name: str) -> Path:
        """The log file of a task."""
        return self.root / "logs" / f"{name}.log"

    def lock(self, name: str) -> Path:
        """The file that processes lock while they do a task."""
        return self.root / "locks" / f"{name}.lock"


def locate(environ: Mapping[str, str]) -> Path:
    """The cache directory that the environment asks for, or the user's own."""
    if chosen := environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    shared = environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    if Path(shared).is_absolute():
        return Path(shared) / "kserve-llamacpp"
    return _home(environ) / ".cache" / "kserve-llamacpp"


def open_cache(environ: Mapping[str, str]) -> Cache:
    """The cache, made where it is missing; refused when nothing can be written to it."""
    root = locate(environ)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise BootstrapError(
            f"the cache directory {root} cannot be written to ({error.strerror or error}); "
            f"set {VARIABLE} to a directory that can"
        ) from error
    return Cache(root)


def _home(environ: Mapping[str, str]) -> Path:
    if home := environ.get("HOME"):
        return Path(home)
    try:
        # Without HOME this asks the user database, which may not know the user id of a container.
        return Path.home()
    except RuntimeError as error:
        raise BootstrapError(
            f"there is no home directory to keep a cache in; set {VARIABLE} to a directory"
        ) from error
