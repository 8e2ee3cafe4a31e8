"""What gives settings, each as a layer: a file, the environment, the flags.

In each of them a setting's own name wins over its aliases, and aliases must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from openai_proxy.config.aliases import ALIASES, BY_NAME, SECTIONS, Alias, agree, health_form
from openai_proxy.config.errors import ConfigError
from openai_proxy.config.explain import like
from openai_proxy.config.files import CONFIG_VARIABLE
from openai_proxy.config.layers import Layer, Origin, Place, dotted, places_of
from openai_proxy.config.names import ENV_PREFIX, flag_of, from_text, variable_of

Fields = Mapping[str, FieldInfo]
# Kubernetes gives every pod variables for each Service: MY_PORT=tcp://10.0.0.1:80 for one named my.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
_SERVICE_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)")


@dataclass(frozen=True, slots=True)
class _Given:
    """A value for a setting; `name` is what its source calls the setting."""

    setting: str
    value: Any
    origins: Mapping[Place, Origin]
    name: str
    is_alias: bool = False


def of_file(path: Path) -> Layer:
    """Return what a file gives; raises ConfigError."""
    from openai_proxy.config import yaml_file  # not imported where there is no file

    values, lines = yaml_file.read(path, str(path))
    given: list[_Given] = []
    problems: list[str] = []

    def origins(place: Place, setting: str) -> dict[Place, Origin]:
        return {
            (setting, *at[len(place) :]): Origin(str(path), line, dotted(at))
            for at, line in lines.items()
            if at[: len(place)] == place
        }

    for key, value in values.items():
        if key not in SECTIONS:
            given.append(_Given(key, value, origins((key,), key), key))
            continue
        if value is not None and not isinstance(value, Mapping):
            problems.append(f"{path}:{lines[key,]}: {key}: must be a mapping")
            continue
        for name, held in (value or {}).items():
            alias = BY_NAME.get(f"{key}.{name}")
            place = (key, name)
            if alias is None:
                known = [a.name.split(".")[1] for a in ALIASES if a.name.startswith(f"{key}.")]
                line = f"{path}:{lines[place]}"
                problems.append(f"{line}: {dotted(place)} is no setting{like(name, known)}")
            elif held is not None:
                for setting in alias.readings:
                    at = origins(place, setting)
                    given += _read(alias, setting, held, at, str(at[setting,]), problems)
    return _resolved(given, problems)


def of_environment(variables: Mapping[str, str], fields: Fields, has_backend: bool) -> Layer:
    """Return what environment variables give (see `usable`); raises ConfigError.

    `has_backend`: some layer names a backend, which changes what some aliases mean.
    """
    given: list[_Given] = []
    problems: list[str] = []
    for name, field in fields.items():
        variable = variable_of(name)
        if variable not in variables:
            continue
        try:
            value = from_text(field, variables[variable])
        except ValueError as error:
            problems.append(f"{variable}: {error}")
            continue
        given.append(_Given(name, value, _everywhere(value, name, variable), variable))
    for alias in ALIASES:
        if not alias.is_variable or alias.name not in variables:
            continue
        text = variables[alias.name]
        if has_backend and alias.with_backend is not None:
            at = _everywhere(text, alias.with_backend, alias.name)
            given.append(_Given(alias.with_backend, text, at, alias.name, is_alias=True))
        else:
            for setting in alias.readings:
                at = _everywhere(text, setting, alias.name)
                given += _read(alias, setting, text, at, alias.name, problems)
    return _resolved(given, problems)


def of_flags(flags: Mapping[str, Any], typed: Mapping[str, str], fields: Fields) -> Layer:
    """Return what flags give, as text or already as values; `typed` tells which flag it was."""
    given: list[_Given] = []
    problems: list[str] = []
    for name, held in flags.items():
        flag = typed.get(name, flag_of(name))
        value = held
        if isinstance(held, str) and name in fields:
            try:
                value = from_text(fields[name], held)
            except ValueError as error:
                problems.append(f"{flag}: {error}")
                continue
        given.append(_Given(name, value, _everywhere(value, name, flag), flag))
    return _resolved(given, problems)


def usable(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without empty variables and Kubernetes' links to Services."""
    return {
        name: value for name, value in environ.items() if value and not _SERVICE_LINK.match(value)
    }


def unknown_variables(variables: Mapping[str, str], fields: Fields) -> list[str]:
    """Return a sentence for each variable that looks like a setting of ours and is none."""
    known = {variable_of(name) for name in fields} | {CONFIG_VARIABLE}
    return [
        f"{name} is no setting{like(name, known)}"
        for name in sorted(variables)
        if name.startswith(ENV_PREFIX) and name not in known and not _SERVICE_LINK_NAME.search(name)
    ]


def with_implied(layer: Layer) -> Layer:
    """Return a layer with what its aliases imply, for settings that nobody gives."""
    values, origins = dict(layer.values), dict(layer.origins)
    for alias in ALIASES:
        origin = origins.get((alias.setting,))
        if origin is None or alias.name not in (origin.name, origin.key):
            continue
        for name, value in alias.implies.items():
            if name not in values:
                values[name] = value
                origins[name,] = origin
    used = {name: origin for origin in layer.origins.values() for name in (origin.name, origin.key)}
    form = health_form(used)
    if form is not None and "health" not in values:
        values["health"] = form
        origins["health",] = next(used[name] for name in used if health_form([name]) is not None)
    return Layer(values, origins)


def _everywhere(value: Any, setting: str, name: str) -> dict[Place, Origin]:
    return dict.fromkeys(places_of(value, (setting,)), Origin(name))


def _read(
    alias: Alias,
    setting: str,
    value: Any,
    origins: Mapping[Place, Origin],
    name: str,
    problems: list[str],
) -> Iterable[_Given]:
    """Yield what an alias's value means for a setting, if anything.

    Adds to `problems` what it cannot mean.
    """
    try:
        meaning = alias.readings[setting](value)
    except ValueError as error:
        problems.append(f"{name}: {alias.name}: {error}" if alias.is_key else f"{name}: {error}")
        return
    if meaning is not None:
        yield _Given(setting, meaning, origins, name, is_alias=True)


def _resolved(given: Iterable[_Given], problems: list[str]) -> Layer:
    by_setting: dict[str, list[_Given]] = {}
    for found in given:
        by_setting.setdefault(found.setting, []).append(found)
    values: dict[str, Any] = {}
    origins: dict[Place, Origin] = {}
    for setting, all_given in by_setting.items():
        own = [found for found in all_given if not found.is_alias]
        first = (own or all_given)[0]
        problems += [
            f"{first.name} and {other.name} disagree, and both mean {setting}: keep one of them, "
            f"or set {setting} itself ({variable_of(setting)})"
            for other in ([] if own else all_given)
            if not agree(first.value, other.value)
        ]
        values[setting] = first.value
        origins |= first.origins
    if problems:
        raise ConfigError(*problems)
    return Layer(values, origins)
