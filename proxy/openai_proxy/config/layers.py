"""Layers of settings, and how an upper one is laid over a lower one.

    layer = merge(merge(merge(file, environment_file), environment), flags)

Mappings are merged, whatever their depth; anything else, lists included, is replaced; None takes
back what lower layers gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Place = tuple[str | int, ...]  # of a value among the settings: ("upstreams", 0, "url")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was given: the flag, the variable, or the line and key of a file."""

    name: str
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}"


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings by name, unchecked, and the origins of all values in them, at any depth."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[Place, Origin] = field(default_factory=dict)

    def whole(self, place: Place) -> Place:
        """Return the place that has an origin: this one, or that of which it is a part, or ()."""
        lengths = range(len(place), 0, -1)
        return next((place[:n] for n in lengths if place[:n] in self.origins), ())

    def value(self, place: Place) -> Any:
        """Return the value at a place; None where none was given."""
        value: Any = self.values
        for step in place:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def merge(lower: Layer, upper: Layer) -> Layer:
    """Lay one layer over another; both stay as they are."""
    replaced: list[Place] = []
    taken_back: list[Place] = []
    values = _merged(lower.values, upper.values, (), replaced, taken_back)
    origins = {place: at for place, at in lower.origins.items() if not _is_in(place, replaced)}
    origins |= {place: at for place, at in upper.origins.items() if not _is_in(place, taken_back)}
    return Layer(values, origins)


def _merged(
    lower: Mapping[str, Any],
    upper: Mapping[str, Any],
    place: Place,
    replaced: list[Place],
    taken_back: list[Place],
) -> dict[str, Any]:
    values = dict(lower)
    for key, value in upper.items():
        held = (*place, key)
        if isinstance(value, Mapping):
            under = values.get(key)
            if not isinstance(under, Mapping):
                replaced.append(held)
                under = {}
            values[key] = _merged(under, value, held, replaced, taken_back)
            continue
        replaced.append(held)
        if value is None:
            taken_back.append(held)
            values.pop(key, None)
        else:
            values[key] = value
    return values


def _is_in(place: Place, places: list[Place]) -> bool:
    return any(place[: len(other)] == other for other in places)


def places_of(value: Any, place: Place) -> Iterator[Place]:
    """Yield the place of a value, and of each that it holds."""
    yield place
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield from places_of(held, (*place, key))
    elif isinstance(value, (list, tuple)):
        for index, held in enumerate(value):
            yield from places_of(held, (*place, index))


def dotted(place: Place) -> str:
    """Return a place as it is written: `upstreams[0].url`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".")
