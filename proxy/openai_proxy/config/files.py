"""Which files hold the configuration, and the setting of how they are watched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from openai_proxy.config.errors import ConfigError
from openai_proxy.config.names import ENV_PREFIX
from openai_proxy.config.types import Delay

CONFIG_FLAG = "--config"
CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
ENVIRONMENT_VARIABLE = "RUN_ENV"
# Where no file is named: the first of these that is there
USUAL = (Path("config.yaml"), Path("config") / "default.yaml")

Stamp = tuple[tuple[int, int, int, int] | None, ...]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class FilesSettings(BaseModel):
    """How the configuration's files are watched."""

    config_poll_seconds: Delay = Field(
        1,
        description="Time between two looks at the configuration's files, which are read again "
        "when they have changed; 0 reads them again on SIGHUP alone.",
    )


@dataclass(frozen=True, slots=True)
class Files:
    """The files to read, lower layers first; all that may come; and the stamp of those."""

    read: tuple[Path, ...]
    watched: tuple[Path, ...]
    stamp: Stamp


def find(given: str | None, variables: Mapping[str, str]) -> Files:
    """Return the configuration's files: the one that is named or usual, and RUN_ENV's beside it.

    Raises ConfigError where a file is named and is not there.
    """
    named = given if given is not None else variables.get(CONFIG_VARIABLE)
    if named is not None and not Path(named).exists():
        source = CONFIG_FLAG if given is not None else CONFIG_VARIABLE
        raise ConfigError(f"{source}: there is no file {named}")
    environment = variables.get(ENVIRONMENT_VARIABLE)
    if environment is not None and not _NAME.fullmatch(environment):
        raise ConfigError(
            f"{ENVIRONMENT_VARIABLE}: must be a name such as production: it stands in a file's name"
        )
    places = [
        [base] if environment is None else [base, _of_environment(base, environment)]
        for base in (USUAL if named is None else (Path(named),))
    ]
    watched = tuple(path for layers in places for path in layers)
    before = stamp(watched)
    present = [[path for path in layers if path.exists()] for layers in places]
    return Files(tuple(next(filter(None, present), [])), watched, before)


def _of_environment(base: Path, environment: str) -> Path:
    """Return config.production.yaml beside config.yaml, production.yaml beside default.yaml."""
    stem = "" if base.stem == "default" else f"{base.stem}."
    return base.with_name(f"{stem}{environment}{base.suffix}")


def stamp(paths: Iterable[Path]) -> Stamp:
    """Return what changes when a file does: also when a link on the way leads elsewhere.

    That is how Kubernetes swaps a ConfigMap's files.
    """
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
