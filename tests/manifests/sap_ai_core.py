"""Renders SAP AI Core's ServingTemplate, as SAP AI Core does it: strings first, YAML afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2] / "manifests" / "sap-ai-core"
TEMPLATE = ROOT / "templates" / "kserve-llamacpp.yaml"
PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}")


def load() -> dict[str, Any]:
    """Return the template as it stands in its file."""
    loaded = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def defaults(template: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters' default values."""
    return {entry["name"]: entry["default"] for entry in template["spec"]["inputs"]["parameters"]}


def request(name: str) -> Any:
    """Return the body of a request to SAP AI Core's API."""
    return json.loads((ROOT / "requests" / f"{name}.json").read_text(encoding="utf-8"))


def bindings() -> dict[str, str]:
    """Return the parameters of the example configuration."""
    return {entry["key"]: entry["value"] for entry in request("configuration")["parameterBindings"]}


def strings(template: Mapping[str, Any]) -> dict[str, str]:
    """Return the strings that are rendered, by their place in the InferenceService."""
    inner = template["spec"]["template"]
    return {
        "annotations": inner["metadata"]["annotations"],
        "labels": inner["metadata"]["labels"],
        "spec": inner["spec"],
    }


def render(
    template: Mapping[str, Any],
    name: str,
    parameters: Mapping[str, str],
    artifacts: Mapping[str, str],
) -> dict[str, Any]:
    """Return the InferenceService; parameters that are not given have their defaults.

    Raises KeyError where a placeholder or a parameter is not declared.
    """
    declared = defaults(template)
    if unknown := set(parameters) - set(declared):
        raise KeyError(f"no such parameter: {', '.join(sorted(unknown))}")
    given = {**declared, **parameters}
    values = {f"inputs.parameters.{key}": value for key, value in given.items()}
    values |= {f"inputs.artifacts.{key}": value for key, value in artifacts.items()}
    parts = {
        place: yaml.safe_load(PLACEHOLDER.sub(lambda match: values[match[1]], text))
        for place, text in strings(template).items()
    }
    return {
        "apiVersion": template["spec"]["template"]["apiVersion"],
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "annotations": parts["annotations"],
            "labels": parts["labels"],
        },
        "spec": parts["spec"],
    }
