"""Layers of settings: what is above wins; mappings are merged, all else is replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openai_proxy.config import Flags, load_all
from openai_proxy.config.layers import Layer, Origin, merge, places_of

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.one_of(st.integers(0, 9), st.none(), st.lists(st.integers(0, 9), max_size=2))
TREES = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda held: st.dictionaries(KEYS, held, max_size=3), max_leaves=6)
)


def layer(values: Mapping[str, Any], name: str) -> Layer:
    """A layer all of whose values are from one source."""
    places = [place for place in places_of(values, ()) if place]
    return Layer(values, dict.fromkeys(places, Origin(name)))


def expected(layers: list[Mapping[str, Any]], place: tuple[str, ...]) -> Any:
    """What should stand at a leaf: looked up from the top, by a rule of its own for each step."""
    for upper in reversed(layers):
        held: Any = upper
        for step in place:
            if not isinstance(held, Mapping):
                return None  # something else stands in the way
            if step not in held:
                break
            held = held[step]
        else:
            if not isinstance(held, Mapping):
                return held
            return {}  # checked through its leaves
    return None


def leaves(values: Mapping[str, Any], place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= leaves(value, (*place, key))
        else:
            found[*place, key] = value
    return found


@given(st.lists(TREES, min_size=1, max_size=4))
def test_the_upper_layer_wins(trees: list[dict[str, Any]]) -> None:
    """At each place stands what the uppermost layer says that says anything about it."""
    merged = reduce(merge, [layer(tree, str(n)) for n, tree in enumerate(trees)], Layer())

    found = leaves(merged.values)
    for place in {place for tree in trees for place in leaves(tree)}:
        value = expected(list(trees), place)
        if value != {}:
            assert found.get(place) == value, place
    assert None not in found.values()


@given(st.lists(TREES, min_size=1, max_size=4))
def test_origins_are_true(trees: list[dict[str, Any]]) -> None:
    """The layer that a value is said to come from has it."""
    merged = reduce(merge, [layer(tree, str(n)) for n, tree in enumerate(trees)], Layer())

    for place, value in leaves(merged.values).items():
        origin = merged.origins[merged.whole(place)]
        assert leaves(trees[int(origin.name)])[place] == value
    for place in merged.origins:
        assert place in set(places_of(merged.values, ())), place


@given(TREES, TREES)
def test_layers_stay_as_they_are(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    """Merging changes none of the layers."""
    before = json.dumps([lower, upper])
    merge(layer(lower, "0"), layer(upper, "1"))
    assert json.dumps([lower, upper]) == before


LAYERS = ("file", "environment's file", "variable", "flag")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(
        st.sampled_from(["port", "grace_seconds", "max_body_bytes"]),
        st.dictionaries(st.sampled_from(LAYERS), st.integers(1, 65535)),
    )
)
def test_precedence(tmp_path: Path, values: dict[str, dict[str, int]]) -> None:
    """Of all sources that give a setting the last in the order above wins, else the default."""
    files = [tmp_path / "config.yaml", tmp_path / "config.test.yaml"]
    for file, name in zip(files, LAYERS, strict=False):
        given_there = {key: by[name] for key, by in values.items() if name in by}
        file.write_text(yaml.safe_dump(given_there), encoding="utf-8")
    environ = {"RUN_ENV": "test", "OPENAI_PROXY_UPSTREAM_URL": "http://h"}
    for key, by in values.items():
        if "variable" in by:
            environ[f"OPENAI_PROXY_{key.upper()}"] = str(by["variable"])
    flags = {key: str(by["flag"]) for key, by in values.items() if "flag" in by}

    found = load_all(Flags(flags, config=str(files[0])), environ).settings

    defaults = {"port": 8000, "grace_seconds": 30, "max_body_bytes": 8388608}
    for key, default in defaults.items():
        by = values.get(key, {})
        given_values = [by[name] for name in LAYERS if name in by]
        assert getattr(found, key) == (given_values or [default])[-1]
