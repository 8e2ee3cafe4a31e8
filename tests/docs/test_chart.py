"""Each value of the chart is documented, has a schema, and stands in the chart's README."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from openai_proxy import __version__
from tests.chart import values
from tests.docs import proxy_settings

SCHEMA = json.loads((values.CHART / "values.schema.json").read_text(encoding="utf-8"))


def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in schema:
        found = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]]
        assert isinstance(found, dict)
        return found
    return schema


def schema_of(path: tuple[str, ...]) -> Mapping[str, Any] | None:
    schema: Mapping[str, Any] = SCHEMA
    for step in path:
        found = resolved(schema).get("properties", {}).get(step)
        if found is None:
            return None
        schema = found
    return resolved(schema)


def named_by_schema(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the path of each value that the schema names."""
    properties = resolved(schema).get("properties", {})
    if not properties:
        yield ".".join(path)
    for name, held in properties.items():
        yield from named_by_schema(held, (*path, name))


def test_every_value_is_documented() -> None:
    """No value lacks its comment."""
    assert values.undocumented() == []


@pytest.mark.parametrize("value", values.documented(), ids=lambda value: ".".join(value.path))
def test_value_has_a_schema(value: values.Value) -> None:
    """The schema names the value, and takes its default."""
    schema = schema_of(value.path)

    assert schema is not None
    assert schema.keys() & {"type", "enum", "anyOf"}
    validator = Draft7Validator({**schema, "definitions": SCHEMA["definitions"]})
    assert list(validator.iter_errors(value.default)) == []


def test_schema_names_no_other_value() -> None:
    """What the schema takes stands in values.yaml, but for settings that have no default here."""
    known = [".".join(value.path) for value in values.documented()]

    for name in named_by_schema(SCHEMA):
        is_known = any(name == path or name.startswith(f"{path}.") for path in known)
        assert is_known or name == "global" or name.startswith("proxy.config."), name


def test_settings_of_the_proxy() -> None:
    """`proxy.config` takes each setting of the proxy that is not the chart's own to give."""
    schema = proxy_settings.SCHEMA.read_text(encoding="utf-8")

    assert proxy_settings.with_settings(schema) == schema


def test_readme_has_the_table() -> None:
    """The README's table is that of values.yaml; `python -m tests.chart.values` writes it."""
    readme = values.README.read_text(encoding="utf-8")

    assert values.with_table(readme) == readme


def test_version() -> None:
    """The chart installs the images of this version."""
    chart = yaml.safe_load((values.CHART / "Chart.yaml").read_text(encoding="utf-8"))

    assert chart["appVersion"] == __version__
