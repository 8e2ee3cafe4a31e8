"""The command line, made from the settings: one flag for each, with its variable and default."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from openai_proxy import __version__
from openai_proxy.config import ConfigError, Settings, flag_of, variable_of

# other names for a flag, as programs that this one replaces have them
ALIASES = {"host": ["--proxy-host"], "port": ["--proxy-port"]}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings that are given as flags, unchecked; what follows -- is `backend_args`.

    Raises ConfigError; `--help` and `--version` print and raise SystemExit.
    """
    ours, passed_on = list(arguments), []
    if "--" in ours:
        cut = ours.index("--")
        ours, passed_on = ours[:cut], ours[cut + 1 :]
    values = vars(_parser().parse_args(ours))
    if passed_on or "backend_args" in values:
        values["backend_args"] = (*values.get("backend_args", ()), *passed_on)
    return values


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m openai_proxy",
        description="An OpenAI API in front of a model server.",
        epilog="Flags win over the environment, the environment over defaults.",
        usage="%(prog)s (--upstream-url URL | --backend llamacpp --model-path FILE | "
        "--without-upstream) [OPTIONS] [-- BACKEND ARGUMENTS]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=__version__)
    for name, field in Settings.model_fields.items():
        _add(parser, name, field)
    return parser


def _add(parser: _Parser, name: str, field: FieldInfo) -> None:
    names = [flag_of(name), *ALIASES.get(name, [])]
    default = "" if field.default in (None, (), False) else f", default {field.default}"
    text = f"{field.description} [{variable_of(name)}{default}]".replace("%", "%%")
    if field.annotation is bool:
        parser.add_argument(*names, dest=name, action="store_true", help=text)
    elif name == "backend_args":
        parser.add_argument(*names, dest=name, action="append", metavar="ARGUMENT", help=text)
    else:
        parser.add_argument(*names, dest=name, metavar=_metavar(name), help=text)


def _metavar(name: str) -> str:
    if name.endswith(("_seconds", "_timeout")):
        return "SECONDS"
    return name.rsplit("_", 1)[-1].upper()
