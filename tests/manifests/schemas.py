"""What a cluster's API would refuse in an object, found without a cluster.

    problems({"apiVersion": "v1", "kind": "Service", "spec": {"port": 80}})
    -> ["'metadata' is a required property", "spec.port: unknown field"]

The schemas lie in `schemas/`, whose README says where they are from. Rules in CEL
(`x-kubernetes-validations`) and what the API server checks in code are not among them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

FOLDER = Path(__file__).parent / "schemas"
_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
# RFC 1123 subdomains; roles may be named otherwise.
_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_FREELY_NAMED = "rbac.authorization.k8s.io/"
_SHORT_NAMED = frozenset({"v1 Service", "v1 Namespace"})
_LABEL_KEY = r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an object, a sentence each; empty when its kind's API takes it."""
    kind = f"{manifest.get('apiVersion')} {manifest.get('kind')}"
    validator = _validator(kind)
    if validator is None:
        return [f"{kind}: unknown kind"]
    return sorted({line for error in validator.iter_errors(manifest) for line in _tell(error)})


@cache
def _validator(kind: str) -> Draft202012Validator | None:
    if kind not in _kinds():
        return None
    own = _kinds()[kind]
    definitions = _definitions()
    name: dict[str, Any] = {"maxLength": 63 if kind in _SHORT_NAMED else 253}
    if not kind.startswith(_FREELY_NAMED):
        name["pattern"] = _NAME
    rules = {
        "required": ["metadata"],
        "properties": {
            "metadata": {
                "$ref": f"#/definitions/{_OBJECT_META}",
                "anyOf": [{"required": ["name"]}, {"required": ["generateName"]}],
                "properties": {
                    "name": name,
                    "labels": {
                        "propertyNames": {"pattern": _LABEL_KEY},
                        "additionalProperties": {"pattern": _LABEL_VALUE},
                    },
                },
            }
        },
    }
    return Draft202012Validator({"allOf": [own, rules], "definitions": definitions})


@cache
def _kinds() -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(FOLDER.glob("*.json.gz")):
        found.update({name: _strict(schema) for name, schema in _read(path)["kinds"].items()})
    return found


@cache
def _definitions() -> Mapping[str, Any]:
    read = _read(FOLDER / "kubernetes.json.gz")["definitions"]
    return {name: _strict(schema) for name, schema in read.items()}


def _read(path: Path) -> dict[str, Any]:
    loaded = json.loads(gzip.decompress(path.read_bytes()))
    assert isinstance(loaded, dict)
    return loaded


def _strict(schema: Any) -> Any:
    """Return a schema that refuses fields it does not name, as the API does with strict fields.

    Below `allOf`, `anyOf`, `oneOf` and `not` nothing is closed: those name only some fields.
    """
    if not isinstance(schema, dict):
        return schema
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {key: _strict(value) for key, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get(
            "x-kubernetes-preserve-unknown-fields"
        ):
            strict["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if key in schema:
            strict[key] = _strict(schema[key])
    if schema.get("x-kubernetes-int-or-string"):
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if strict.pop("nullable", False) and "type" in schema:
        strict["type"] = [schema["type"], "null"]
    return strict


def _tell(error: ValidationError) -> Iterator[str]:
    place = "".join(_step(step) for step in error.absolute_path).lstrip(".")
    if error.validator == "additionalProperties" and error.validator_value is False:
        for name in sorted(set(error.instance) - set(error.schema["properties"])):
            yield f"{place}.{name}: unknown field".lstrip(".")
    else:
        yield f"{place}: {error.message[:300]}".removeprefix(": ")


def _step(step: str | int) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"
