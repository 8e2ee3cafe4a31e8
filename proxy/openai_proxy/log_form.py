"""The forms of a log line: JSON, pretty, columns; pure functions of an event."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from pydantic_core import PydanticSerializationError, to_json

Event = Mapping[str, Any]
# Returns the line with its line end.
Form = Callable[[Event], str]

MAX_LINE = 64 * 1024  # characters; fields are bounded where they come from, this is the last resort


def form_of(name: str, *, colors: bool = False) -> Form:
    """Return the form of that name: `json`, `columns`, or `pretty` (with colors on a terminal)."""
    if name == "json":
        return as_json
    if name == "columns":
        return as_columns
    console = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False)

    def pretty(event: Event) -> str:
        fields = {
            _printable(name): _printable(value) if isinstance(value, str) else value
            for name, value in event.items()
            if name != "stack"
        }
        return _line(str(console(None, "", fields)), event.get("stack"))

    return pretty


def as_json(event: Event) -> str:
    """Return an event as one line of JSON."""
    line = _encode(event)
    if len(line) > MAX_LINE:
        head = {name: event[name] for name in ("timestamp", "level") if name in event}
        line = _encode({**head, "event": str(event.get("event"))[:1000], "cut_off": len(line)})
    return line + "\n"


def as_columns(event: Event) -> str:
    """Return an event as `2026-01-31 10:30:45 | INFO     | module | message key=value`, in UTC."""
    fields = dict(event)
    time = str(fields.pop("timestamp", ""))[:19].replace("T", " ")
    level = str(fields.pop("level", "info")).upper()
    module = fields.pop("logger", "openai_proxy")
    stack = fields.pop("stack", None)
    words = [str(fields.pop("event", ""))]
    words += [f"{name}={_value(value)}" for name, value in fields.items()]
    return _line(_printable(f"{time} | {level:<8} | {module} | {' '.join(words)}"), stack)


def _encode(value: Any) -> str:
    try:
        return to_json(value, fallback=str).decode()  # several times as fast as json
    except (PydanticSerializationError, ValueError):  # half a surrogate pair
        return _encode_ascii(value)


_encode_ascii = json.JSONEncoder(default=str).encode


def _line(text: str, stack: object) -> str:
    """Return a line, and below it where an exception happened."""
    below = str(stack)[:MAX_LINE].rstrip().split("\n") if stack else []  # maybe a backend's
    return "".join(f"{line}\n" for line in (text[:MAX_LINE], *map(_printable, below)))


def _value(value: Any) -> str:
    """Return a field's value: a plain word as it is, all else as JSON."""
    is_word = isinstance(value, str) and value.isprintable() and not set(value) & set(' "=')
    return str(value) if is_word and value else _encode_ascii(value)


def _printable(text: str) -> str:
    """Return the text without control characters: a terminal must not obey a log line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in text)
