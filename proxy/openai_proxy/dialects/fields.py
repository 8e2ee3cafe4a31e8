"""JSON as upstreams write it: what it is not is left out, never an error."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

from openai_proxy.dialects.base import Json


def json_value(data: bytes) -> Any:
    """Decode JSON; None for what is none."""
    try:
        return from_json(data)
    except ValueError:
        return None


def object_in(value: Json, name: str) -> Json:
    """Return a field that is an object, else an empty one."""
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def text_in(value: Json, name: str) -> str:
    """Return a field that is text, else none."""
    found = value.get(name)
    return found if isinstance(found, str) else ""


def count_in(value: Json, name: str) -> int | None:
    """Return a field that is a count, else None."""
    found = value.get(name)
    is_count = isinstance(found, int) and not isinstance(found, bool) and found >= 0
    return found if is_count else None


def to_json(value: Any) -> bytes:
    """Encode a request for an upstream."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def list_in(value: Json, name: str) -> list[Any]:
    """Return a field that is a list, else an empty one."""
    found = value.get(name)
    return found if isinstance(found, list) else []


def objects_in(value: Any) -> list[Json]:
    """Return the objects in a list, else none."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def names_in(body: bytes, *places: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the names in the first list that a body has, each once.

    A place is the list's name, and the fields of its objects that may have a name, best first.
    None where there is no such list.
    """
    value = json_value(body)
    for name, *fields in places:
        listed = value.get(name) if isinstance(value, dict) else None
        if isinstance(listed, list):
            named = [[text_in(one, field) for field in fields] for one in objects_in(listed)]
            found = [next(filter(None, names), "") for names in named]
            return tuple(dict.fromkeys(filter(None, found)))
    return None
