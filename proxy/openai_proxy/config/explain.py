"""From pydantic's errors to sentences: where the value was given, what is wrong, how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from openai_proxy.config.aliases import SECTIONS
from openai_proxy.config.layers import Layer, Place, dotted
from openai_proxy.config.names import choices_of, flag_of, variable_of

_SHOWN_CHARACTERS = 80
# pydantic's kinds of errors that are told in words of ours
_REASONS = {
    "missing": "is missing",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
}


def problems_of(error: ValidationError, given: Layer, settings: type[BaseModel]) -> list[str]:
    """Return a sentence for each error; what may be secret stands in none."""
    found = error.errors(include_url=False, include_context=False)
    lines = [_line(item["type"], item["msg"], item["loc"], given, settings) for item in found]
    return list(dict.fromkeys(lines))


def like(name: str, known: Iterable[str]) -> str:
    """Return a question after the name that was meant, or nothing."""
    import difflib  # not imported where all is well

    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def is_secret(field: FieldInfo) -> bool:
    """Tell whether a setting's value is never shown."""
    return not field.repr or SecretStr in choices_of(field.annotation)


def _line(kind: str, message: str, place: Place, given: Layer, settings: type[BaseModel]) -> str:
    value = given.value(place)
    reason = _reason(kind, message, value)
    if not place:
        return reason
    is_about_name = kind in ("extra_forbidden", "missing")
    if kind == "extra_forbidden":
        known = set(_names_at(settings, place[:-1])) | (SECTIONS if len(place) == 1 else set())
        reason = f"is no setting{like(str(place[-1]), known)}"
    joint = " " if is_about_name else ": "
    whole = given.whole(place)
    origin = given.origins.get(whole)
    if origin is not None and origin.line is not None:
        key = dotted((origin.key, *place[len(whole) :]))
        return f"{origin}: {key}{joint}{reason}{_shown(place, value, settings)}"
    name = str(place[0])
    where = flag_of(name) if origin is None else origin.name
    if name not in settings.model_fields:
        return f"{where} {reason}" if where == flag_of(name) else f"{where}: {name} {reason}"
    if len(place) > 1:
        return f"{where}: {dotted(place[1:])}{joint}{reason}"
    shown = _shown(place, value, settings)
    return f"{where}: {reason}{shown}; the same setting is {_others(name, where, settings)}"


def _others(name: str, where: str, settings: type[BaseModel]) -> str:
    """Return the setting's own names that were not used, and where more is told."""
    others = [other for other in (variable_of(name), flag_of(name)) if other != where]
    return " and ".join(others) + ", see --help"


def _reason(kind: str, message: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, (int, float)):
        return "must be text: put it in quotes"
    reason = _REASONS.get(kind, message.removeprefix("Value error, "))
    return reason[:1].lower() + reason[1:]


def _shown(place: Place, value: Any, settings: type[BaseModel]) -> str:
    name = str(place[0])
    field = settings.model_fields.get(name)
    # A URL may hold a password, and a structure anything.
    if len(place) > 1 or field is None or is_secret(field) or name.endswith("url"):
        return ""
    if not isinstance(value, (str, int, float)) or "://" in str(value):
        return ""
    return f" (it is {str(value)[:_SHOWN_CHARACTERS]!r})"


def _names_at(settings: type[BaseModel], place: Place) -> Iterable[str]:
    """Return the names of the fields of whatever model is at a place."""
    types: list[Any] = [settings]
    for step in place:
        below: list[Any] = []
        for held in types:
            fields = _fields(held)
            if isinstance(step, str) and step in fields:
                below += choices_of(fields[step].annotation)
            elif get_origin(held) is not None and not fields:
                below += [one for argument in get_args(held) for one in choices_of(argument)]
        types = below or types  # else the step is pydantic's own, as for a union's members
    return [name for held in types for name in _fields(held)]


def _fields(held: Any) -> Mapping[str, FieldInfo]:
    if isinstance(held, type) and issubclass(held, BaseModel):
        return held.model_fields
    return {}
