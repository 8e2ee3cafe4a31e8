"""The command line, made from the settings: a flag for each, with its variable and default.

Structures (mappings, lists of them) stand in the file; as flags and in variables they are JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from openai_proxy import __version__
from openai_proxy.config import ConfigError, Flags, Kind, Settings, flag_of, kind_of, variable_of
from openai_proxy.config.aliases import ALIASES, BY_NAME, agree
from openai_proxy.config.explain import like
from openai_proxy.config.files import CONFIG_FLAG, CONFIG_VARIABLE


class Action(Enum):
    """What the command is asked to do."""

    RUN = "run"
    CHECK_CONFIG = "--check-config"
    PRINT_CONFIG = "--print-config"
    PRINT_SCHEMA = "--print-schema"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was typed: the settings among it, and what is to be done."""

    flags: Flags
    action: Action


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings that are given as flags, unchecked; see `read`."""
    return dict(read(arguments).flags.settings)


def read(arguments: Sequence[str]) -> CommandLine:
    """Return the command line's meaning, settings unchecked; what follows -- is `backend_args`.

    Raises ConfigError; `--help` and `--version` print and raise SystemExit.
    """
    ours, passed_on = list(arguments), []
    if "--" in ours:
        cut = ours.index("--")
        ours, passed_on = ours[:cut], ours[cut + 1 :]
    parser = _parser()
    namespace, unknown = parser.parse_known_args(ours)
    if unknown:
        raise ConfigError(_is_unknown(parser, unknown))
    values = vars(namespace)
    action = values.pop("action", Action.RUN)
    config = values.pop("config", None)
    settings, typed = _without_aliases(values)
    if passed_on or "backend_args" in settings:
        settings["backend_args"] = (*settings.get("backend_args", ()), *passed_on)
    return CommandLine(Flags(settings, typed, config), action)


def _without_aliases(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values by their settings' own names, and how those were typed that have others."""
    settings = {
        name: _as_typed(name, value) for name, value in values.items() if name not in BY_NAME
    }
    typed: dict[str, str] = {}
    for name, value in values.items():
        if name not in BY_NAME:
            continue
        setting = BY_NAME[name].setting
        if setting not in settings:
            settings[setting] = BY_NAME[name].read(value)
            typed[setting] = name
        elif setting in typed and not agree(settings[setting], value):
            raise ConfigError(f"{typed[setting]} and {name} disagree: keep {flag_of(setting)}")
    return settings, typed


def _as_typed(name: str, value: Any) -> Any:
    """Return a flag's value, with what other systems call it by the same flag: `CRITICAL`."""
    alias = BY_NAME.get(flag_of(name))
    return value if alias is None else alias.read(value)


def _is_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """Return a sentence on the first argument that nobody asked for."""
    first = next((word for word in unknown if word.startswith("--")), unknown[0])
    known = [name for action in parser._actions for name in action.option_strings]
    flag = first.split("=", 1)[0]
    return f"unrecognized argument {flag}{like(flag, known)}; see --help"


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m openai_proxy",
        description="An OpenAI API in front of a model server.",
        epilog="Flags win over the environment, the environment over the configuration's files, "
        "files over defaults. The file's settings, and the names of other systems' settings "
        "that work as well: docs/configuration.md.",
        usage="%(prog)s (--upstream-url URL | --backend llamacpp --model-path FILE | "
        "--without-upstream | --config FILE) [OPTIONS] [-- BACKEND ARGUMENTS]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        CONFIG_FLAG,
        metavar="FILE",
        help="YAML file of settings; by default config.yaml or config/default.yaml where it is. "
        f"Beside it, config.NAME.yaml is read for RUN_ENV=NAME. [{CONFIG_VARIABLE}]",
    )
    actions = parser.add_mutually_exclusive_group()
    for action, text in _ACTIONS.items():
        actions.add_argument(
            action.value, dest="action", action="store_const", const=action, help=text
        )
    for name, field in Settings.model_fields.items():
        _add(parser, name, field)
    for alias in ALIASES:
        if alias.is_flag and alias.name != flag_of(alias.setting):
            text = f"The same as {flag_of(alias.setting)}."
            metavar = _metavar(alias.setting)
            parser.add_argument(alias.name, dest=alias.name, metavar=metavar, help=text)
    return parser


_ACTIONS = {
    Action.CHECK_CONFIG: "Say what is wrong with the configuration, and exit: 0 nothing, 2 else.",
    Action.PRINT_CONFIG: "Print all settings and where each comes from, without secrets, and exit.",
    Action.PRINT_SCHEMA: "Print the JSON schema of the configuration file, for editors, and exit.",
}


def _add(parser: _Parser, name: str, field: FieldInfo) -> None:
    flag = flag_of(name)
    value = field.get_default(call_default_factory=True)
    default = "" if value in (None, (), {}, False) else f", default {value}"
    text = f"{field.description} [{variable_of(name)}{default}]".replace("%", "%%")
    if kind_of(field) is Kind.SWITCH:
        action = argparse.BooleanOptionalAction
        parser.add_argument(flag, dest=name, action=action, help=text)
    elif name == "backend_args":
        parser.add_argument(flag, dest=name, action="append", metavar="ARGUMENT", help=text)
    else:
        parser.add_argument(flag, dest=name, metavar=_metavar(name), help=text)


def _metavar(name: str) -> str:
    if name.endswith(("_seconds", "_timeout")):
        return "SECONDS"
    return name.rsplit("_", 1)[-1].upper()
