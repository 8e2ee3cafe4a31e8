"""The names that a setting has on the command line and in the environment, and its text there."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from openai_proxy.config.types import NoDecode

ENV_PREFIX = "OPENAI_PROXY_"


class Kind(Enum):
    """How a setting is written where there is only text."""

    TEXT = "as it is"
    SWITCH = "on or off"
    STRINGS = "separated by commas, or as JSON"
    STRUCTURE = "as JSON, or in the file"


def flag_of(name: str) -> str:
    """Return a setting's flag: `--max-body-bytes`."""
    return "--" + ("backend-arg" if name == "backend_args" else name.replace("_", "-"))


def variable_of(name: str) -> str:
    """Return a setting's environment variable: `OPENAI_PROXY_MAX_BODY_BYTES`."""
    return ENV_PREFIX + name.upper()


def kind_of(field: FieldInfo) -> Kind:
    """Return how a setting is written as text."""
    kinds = {_kind(choice) for choice in _choices(field.annotation)}
    for kind in (Kind.STRUCTURE, Kind.STRINGS, Kind.TEXT):
        if kind in kinds:
            return kind
    return Kind.SWITCH


def from_text(field: FieldInfo, text: str) -> Any:
    """Return what a setting's text stands for, for pydantic to check.

    Raises ValueError where it had to be JSON and is not.
    """
    kind = kind_of(field)
    # NoDecode: the group of settings reads the text itself.
    if kind in (Kind.TEXT, Kind.SWITCH) or NoDecode in field.metadata:
        return text
    if kind is Kind.STRINGS and not text.lstrip().startswith("["):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"must be JSON, and is not at {at}") from None


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a value may have, each without Annotated and without None."""
    return tuple(_choices(annotation))


def _choices(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _choices(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        found = [_choices(choice) for choice in get_args(annotation)]
        return [choice for choices in found for choice in choices]
    return [] if annotation is type(None) else [annotation]


def _kind(choice: Any) -> Kind:
    origin = get_origin(choice) or choice
    if choice is bool:
        return Kind.SWITCH
    if not isinstance(origin, type):
        return Kind.TEXT  # a Literal
    if issubclass(origin, (list, tuple, set, frozenset)):
        items = [item for argument in get_args(choice) for item in _choices(argument)]
        is_plain = all(item is ... or _kind(item) is Kind.TEXT for item in items)
        return Kind.STRINGS if is_plain else Kind.STRUCTURE
    if issubclass(origin, (Mapping, BaseModel)):
        return Kind.STRUCTURE
    return Kind.TEXT
