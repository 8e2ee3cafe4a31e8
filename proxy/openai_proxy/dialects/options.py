"""A dialect's options as they are configured: texts and truth values, or YAML's mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openai_proxy.dialects.fields import json_value

_OBJECT = '{"max_tokens": 256}'


def one_of(name: str, value: str, *allowed: str) -> str:
    """Return an option that is one of a few words; raises ValueError."""
    if value not in allowed:
        raise ValueError(f"its option {name} must be one of {', '.join(allowed)}")
    return value


def truth(name: str, value: bool | str) -> bool:
    """Return an option that is true or false; raises ValueError."""
    if isinstance(value, bool):
        return value
    return one_of(name, value.strip().lower(), "true", "false") == "true"


def whole_number(name: str, value: int | str, least: int = 1) -> int:
    """Return a dialect's option that counts something; raises ValueError."""
    text = str(value).strip()
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"its option {name} must be a whole number of at least {least}")
    return int(text)


def parameter_names(name: str, value: str | Mapping[str, str]) -> Mapping[str, str]:
    """Return an upstream's names by OpenAI's: `temperature, max_tokens=max_new_tokens`.

    Raises ValueError.
    """
    if isinstance(value, Mapping):
        return value
    names: dict[str, str] = {}
    for part in str(value).split(","):
        openai_name, _, own_name = (word.strip() for word in part.partition("="))
        if not openai_name.isidentifier():
            raise ValueError(
                f"its option {name} must list parameters, such as "
                "'temperature, max_tokens=max_new_tokens'"
            )
        names[openai_name] = own_name or openai_name
    return names


def parameter_values(name: str, value: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return parameters by the upstream's names, written as a JSON object; raises ValueError."""
    found = json_value(value.encode()) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ValueError(f"its option {name} must be an object, such as {_OBJECT}")
    return found
