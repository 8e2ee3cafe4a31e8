"""From all layers to checked settings: defaults, files, the environment, flags.

settings = load({"port": "9000", "upstream_url": "http://127.0.0.1:8080"})
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from pydantic import ValidationError

from openai_proxy.config import sources
from openai_proxy.config.aliases import BY_NAME
from openai_proxy.config.errors import ConfigError
from openai_proxy.config.explain import problems_of
from openai_proxy.config.files import Files, find
from openai_proxy.config.layers import Layer, merge
from openai_proxy.config.names import variable_of
from openai_proxy.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line gives: settings, as which flags they were typed, and which file."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    typed: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Checked settings, what was given and where, the files, and what looks like a slip."""

    settings: Settings
    given: Layer
    files: Files
    warnings: tuple[str, ...]


def load(flags: Mapping[str, Any]) -> Settings:
    """Return the settings from these flags and all layers below them; raises ConfigError."""
    return load_all(Flags(flags)).settings


def load_all(flags: Flags, environ: Mapping[str, str] | None = None) -> Loaded:
    """Return the settings with where they come from; raises ConfigError with every problem.

    It reads files and the environment anew each time, so that a reload is another call of it.
    """
    fields = Settings.model_fields
    variables = sources.usable(os.environ if environ is None else environ)
    files = find(flags.config, variables)
    below = reduce(merge, map(sources.of_file, files.read), Layer())
    above = sources.of_flags(flags.settings, flags.typed, fields)
    has_backend = any(
        (
            below.values.get("backend"),
            above.values.get("backend"),
            *(name in variables for name in _BACKEND_VARIABLES),
        )
    )
    environment = sources.of_environment(variables, fields, has_backend)
    given = sources.with_implied(merge(merge(below, environment), above))
    return Loaded(checked(given), given, files, tuple(sources.unknown_variables(variables, fields)))


def checked(given: Layer) -> Settings:
    """Return the settings of a layer; raises ConfigError."""
    try:
        return Settings.model_validate(given.values)
    except ValidationError as error:
        raise ConfigError(*problems_of(error, given, Settings)) from None


_BACKEND_VARIABLES = (
    variable_of("backend"),
    *(name for name, alias in BY_NAME.items() if alias.setting == "backend" and alias.is_variable),
)
