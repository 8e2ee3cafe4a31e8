"""Makes the schemas beside this file anew, from the Go modules that carry them; needs `go`.

    python tests/manifests/schemas/vendor.py

Descriptions and defaults are left out; nothing else is changed, but that Kubernetes' lists of
allowed values are added (its published OpenAPI leaves them out, its generated Go code has them) and
the form of a quantity.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KUBERNETES = "k8s.io/kubernetes@v1.34.4"
GROUPS = (
    "api__v1",
    "apis__apps__v1",
    "apis__autoscaling__v2",
    "apis__batch__v1",
    "apis__networking.k8s.io__v1",
    "apis__policy__v1",
    "apis__rbac.authorization.k8s.io__v1",
    "apis__storage.k8s.io__v1",
)
# File here: Go module, its files with CustomResourceDefinitions
CUSTOM = {
    "kserve": (
        "github.com/kserve/kserve@v0.20.0",
        "config/crd/full/serving.kserve.io_inferenceservices.yaml",
        "config/crd/full/serving.kserve.io_servingruntimes.yaml",
        "config/crd/full/serving.kserve.io_clusterservingruntimes.yaml",
        "config/crd/full/clusterstoragecontainer/serving.kserve.io_*.yaml",
    ),
    "keda": (
        "github.com/kedacore/keda/v2@v2.19.0",
        "config/crd/bases/keda.sh_scaledobjects.yaml",
        "config/crd/bases/keda.sh_triggerauthentications.yaml",
        "config/crd/bases/keda.sh_clustertriggerauthentications.yaml",
    ),
    "knative": ("knative.dev/serving@v0.48.1", "config/core/300-resources/service.yaml"),
    "gateway-api": (
        "sigs.k8s.io/gateway-api@v1.4.1",
        "config/crd/standard/gateway.networking.k8s.io_gateways.yaml",
        "config/crd/standard/gateway.networking.k8s.io_gatewayclasses.yaml",
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    ),
    "prometheus-operator": (
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ),
}
COMPOSE = "github.com/compose-spec/compose-go/v2@v2.4.7"
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
# As the API server's own error message has it
QUANTITY_PATTERN = r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
_REFERENCE = "#/components/schemas/"
_LEFT_OUT = frozenset({"description", "default", "example", "externalDocs"})


def main() -> None:
    """Write all files."""
    write("kubernetes", KUBERNETES, kubernetes(fetch(KUBERNETES)))
    for name, (module, *patterns) in CUSTOM.items():
        folder = fetch(module)
        found = {}
        for pattern in patterns:
            for path in sorted(folder.glob(pattern)):
                found.update(custom(yaml.safe_load(path.read_text(encoding="utf-8"))))
        write(name, module, {"kinds": found})
    compose = json.loads((fetch(COMPOSE) / "schema" / "compose-spec.json").read_text("utf-8"))
    write("compose", COMPOSE, {"kinds": {}, "schema": slim(compose)})


def fetch(module: str) -> Path:
    """Download a Go module and return its folder."""
    command = ["go", "mod", "download", "-json", module]
    done = subprocess.run(command, cwd="/", capture_output=True, check=True)
    return Path(json.loads(done.stdout)["Dir"])


def write(name: str, module: str, content: Mapping[str, Any]) -> None:
    """Write one file, the same bytes each time."""
    text = json.dumps({"module": module, **content}, sort_keys=True, separators=(",", ":"))
    target = HERE / f"{name}.json.gz"
    target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{target.name}: {module}, {target.stat().st_size} bytes")


def kubernetes(folder: Path) -> dict[str, Any]:
    """Return the kinds of GROUPS, and the definitions that they are made of."""
    definitions: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for group in GROUPS:
        path = folder / "api" / "openapi-spec" / "v3" / f"{group}_openapi.json"
        definitions.update(json.loads(path.read_text(encoding="utf-8"))["components"]["schemas"])
    for name, values in allowed(folder / "pkg" / "generated" / "openapi"):
        found = definitions.get(name, {}).get("properties", {})
        for key, schema in found.items():
            if key in values:
                (schema["items"] if schema.get("type") == "array" else schema)["enum"] = values[key]
    definitions[QUANTITY]["pattern"] = QUANTITY_PATTERN
    served = {"/".join(group.split("__")[1:]) for group in GROUPS}
    for name, schema in definitions.items():
        for entry in schema.get("x-kubernetes-group-version-kind", ()):
            version = f"{entry['group']}/{entry['version']}".removeprefix("/")
            if version in served and "metadata" in schema["properties"]:
                kinds[f"{version} {entry['kind']}"] = {"$ref": f"#/definitions/{name}"}
    kinds = {name: kind for name, kind in kinds.items() if not name.endswith("List")}
    needed = reachable(kinds, definitions)
    return {"kinds": kinds, "definitions": {name: slim(definitions[name]) for name in needed}}


def allowed(folder: Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield the names of definitions and the values that their fields may have."""
    source = (folder / "zz_generated.openapi.go").read_text(encoding="utf-8")
    for function in re.split(r"^func schema_", source, flags=re.MULTILINE)[1:]:
        # k8sio_api_core_v1_Container( -> io.k8s.api.core.v1.Container
        name = function.split("(", 1)[0].replace("k8sio_", "io.k8s.").replace("_", ".")
        values: dict[str, list[str]] = {}
        field = ""
        for line in function.splitlines():
            if match := re.match(r'\t{5}"(\w+)": \{$', line):
                field = match[1]
            elif match := re.match(r"\s*Enum:\s*\[\]interface\{\}\{(.*)\},$", line):
                values[field] = json.loads(f"[{match[1]}]")
        if values:
            yield name, values


def reachable(start: Any, definitions: Mapping[str, Any]) -> list[str]:
    """Return the names of all definitions that are referred to, directly or not."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in references(todo.pop()):
            if name not in seen:
                seen.add(name)
                todo.append(definitions[name])
    return sorted(seen)


def references(schema: Any) -> Iterator[str]:
    """Yield the definitions that a schema names."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref":
                yield value.rsplit("/", 1)[1]
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def custom(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kinds that a CustomResourceDefinition serves."""
    spec = definition["spec"]
    return {
        f"{spec['group']}/{version['name']} {spec['names']['kind']}": slim(
            version["schema"]["openAPIV3Schema"]
        )
        for version in spec["versions"]
        if version["served"]
    }


def slim(schema: Any) -> Any:
    """Leave out what says nothing about an object's form."""
    if isinstance(schema, list):
        return [slim(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key == "properties":
            # Names of fields, which may well be `description` or `default`.
            kept[key] = {name: slim(field) for name, field in value.items()}
        elif key == "$ref":
            kept[key] = value.replace(_REFERENCE, "#/definitions/")
        elif key in ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"):
            kept[key] = value
        elif key not in _LEFT_OUT and not key.startswith("x-kubernetes-"):
            kept[key] = slim(value)
    return kept


if __name__ == "__main__":
    main()
