"""The effective configuration as YAML, with where each value comes from; secrets are masked.

What it prints is a configuration file again, but for what is masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr

from openai_proxy.config.explain import is_secret
from openai_proxy.config.layers import Layer, Place
from openai_proxy.config.loading import Loaded

MASK = "**********"
DEFAULT = "default"
# Free mappings (headers, a backend's environment) may hold what the key's name says.
_SECRET_KEY = re.compile(
    r"authorization|cookie|credential|passw|secret|token|api.?key|access.?key|private", re.I
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*")
_NOT_TEXT = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def text(loaded: Loaded) -> str:
    """Return the configuration as the text of a file."""
    files = ", ".join(map(str, loaded.files.read)) or "none"
    lines = [f"# files: {files}", *_held(masked(loaded.settings), (), "", loaded.given)]
    return "\n".join(lines) + "\n"


def masked(value: Any) -> Any:
    """Return settings as plain values, without what is secret."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name: _of_field(getattr(value, name), is_secret(field)) for name, field in fields}
    if isinstance(value, Mapping):
        return {
            str(key): _of_field(held, isinstance(held, str) and _may_be_secret(str(key)))
            for key, held in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [masked(held) for held in value]
    if isinstance(value, SecretStr):
        return MASK
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _CREDENTIALS.sub(MASK, str(value))


def _of_field(value: Any, is_hidden: bool) -> Any:
    return MASK if is_hidden and value else masked(value)


def _may_be_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None and not key.lower().endswith("_file")


def _held(value: Any, place: Place, indent: str, given: Layer) -> Iterator[str]:
    """Yield the lines of what a mapping or list holds."""
    if isinstance(value, dict):
        for key, held in value.items():
            within = (*place, key)
            if held and isinstance(held, (dict, list)):
                yield f"{indent}{_text(key)}:"
                yield from _held(held, within, f"{indent}  ", given)
            else:
                yield f"{indent}{_text(key)}: {_scalar(held)}  # {_origin(within, given)}"
        return
    for index, held in enumerate(value):
        within = (*place, index)
        if held and isinstance(held, (dict, list)):
            first, *rest = _held(held, within, f"{indent}  ", given)
            yield f"{indent}- {first.strip()}"
            yield from rest
        else:
            yield f"{indent}- {_scalar(held)}  # {_origin(within, given)}"


def _origin(place: Place, given: Layer) -> str:
    if given.value(place) is None:
        return DEFAULT
    return str(given.origins.get(given.whole(place), DEFAULT))


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        digits, exponent, power = repr(value).partition("e")
        # YAML 1.1 knows an exponent only after a point.
        point = ".0" if exponent and "." not in digits else ""
        return f"{digits}{point}{exponent}{power}".removesuffix(".0")
    return str(value)  # a whole number, {} or []


def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', width=2**30, allow_unicode=True)
    return quoted.rstrip("\n")
