"""Every manifest is one that the API takes; what it would refuse is found without a cluster."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.schemas import FOLDER, problems

ROOT = Path(__file__).resolve().parents[2] / "manifests"
# Kustomize's own files never reach a cluster, SAP AI Core's templates only its own API.
_NOT_APPLIED = ("kustomize.config.k8s.io/", "ai.sap.com/")


def load(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def patches() -> set[Path]:
    """Parts of objects: files that a kustomization merges into whole ones."""
    found = set()
    for path in ROOT.rglob("kustomization.yaml"):
        for patch in load(path)[0].get("patches", []):
            if "path" in patch:
                found.add((path.parent / patch["path"]).resolve())
    return found


def is_applied(path: Path) -> bool:
    return all(
        isinstance(document, dict)
        and "apiVersion" in document
        and not document["apiVersion"].startswith(_NOT_APPLIED)
        for document in load(path)
    )


OBJECTS = [path for path in sorted(ROOT.rglob("*.yaml")) if is_applied(path)]
APPLIED = sorted(set(OBJECTS) - patches())

POD = {"containers": [{"name": "proxy", "image": "proxy:1"}]}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "proxy", "labels": {"app.kubernetes.io/name": "proxy"}},
    "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": POD}},
}
INFERENCE_SERVICE = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "smollm2"},
    "spec": {"predictor": {"model": {"modelFormat": {"name": "gguf"}}}},
}
SCALED_OBJECT = {
    "apiVersion": "keda.sh/v1alpha1",
    "kind": "ScaledObject",
    "metadata": {"name": "smollm2"},
    "spec": {"scaleTargetRef": {"name": "x"}, "triggers": [{"type": "cpu", "metadata": {}}]},
}


def changed(whole: Any, *place: str | int, value: Any) -> Any:
    """Return a copy with one value set, or dropped where it is None."""
    copy = json.loads(json.dumps(whole))
    holder = copy
    for step in place[:-1]:
        holder = holder[step]
    if value is None:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return copy


@pytest.mark.parametrize("path", APPLIED, ids=lambda path: str(path.relative_to(ROOT)))
def test_manifest(path: Path) -> None:
    """The API takes each object of the file."""
    assert [line for document in load(path) for line in problems(document)] == []


@pytest.mark.parametrize("whole", [DEPLOYMENT, INFERENCE_SERVICE, SCALED_OBJECT])
def test_good_object(whole: dict[str, Any]) -> None:
    """An object as the API takes it has no problem."""
    assert problems(whole) == []


POD_SPEC = ("spec", "template", "spec")
CONTAINER = (*POD_SPEC, "containers", 0)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (
            changed(DEPLOYMENT, *POD_SPEC, "enableServiceLink", value=False),
            "spec.template.spec.enableServiceLink: unknown field",
        ),
        (
            changed(DEPLOYMENT, *CONTAINER, "port", value=8000),
            "spec.template.spec.containers[0].port: unknown field",
        ),
        (
            changed(DEPLOYMENT, *CONTAINER, "name", value=None),
            "spec.template.spec.containers[0]: 'name' is a required property",
        ),
        (
            changed(DEPLOYMENT, *CONTAINER, "imagePullPolicy", value="Sometimes"),
            (
                "spec.template.spec.containers[0].imagePullPolicy: "
                "'Sometimes' is not one of ['Always', 'IfNotPresent', 'Never']"
            ),
        ),
        (
            changed(DEPLOYMENT, *CONTAINER, "env", value=[{"name": "A", "value": 5}]),
            "spec.template.spec.containers[0].env[0].value: 5 is not of type 'string'",
        ),
        (
            changed(DEPLOYMENT, "spec", "replicas", value="2"),
            "spec.replicas: '2' is not of type 'integer'",
        ),
        (changed(DEPLOYMENT, "metadata", "lables", value={}), "metadata.lables: unknown field"),
        (
            changed(DEPLOYMENT, "metadata", "labels", "version", value="1.0+dirty"),
            (
                "metadata.labels.version: '1.0+dirty' does not match "
                "'^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$'"
            ),
        ),
        (changed(DEPLOYMENT, "metadata", value=None), "'metadata' is a required property"),
        (changed(DEPLOYMENT, "kind", value="Deploymend"), "apps/v1 Deploymend: unknown kind"),
        (
            changed(DEPLOYMENT, "apiVersion", value="extensions/v1beta1"),
            "extensions/v1beta1 Deployment: unknown kind",
        ),
        (
            changed(INFERENCE_SERVICE, "spec", "predictor", "model", "storageURI", value="pvc://a"),
            "spec.predictor.model.storageURI: unknown field",
        ),
        (
            changed(INFERENCE_SERVICE, "spec", "predictor", "minReplicas", value="1"),
            "spec.predictor.minReplicas: '1' is not of type 'integer'",
        ),
        (
            changed(INFERENCE_SERVICE, "metadata", "annotation", value={}),
            "metadata.annotation: unknown field",
        ),
        (
            changed(SCALED_OBJECT, "spec", "triggers", value=None),
            "spec: 'triggers' is a required property",
        ),
        (
            changed(SCALED_OBJECT, "spec", "maxReplicas", value=2),
            "spec.maxReplicas: unknown field",
        ),
    ],
)
def test_broken_object(broken: dict[str, Any], problem: str) -> None:
    """What the API would refuse is told with its place."""
    assert problem in problems(broken)


@pytest.mark.parametrize("port", [8000, "http"])
def test_number_or_name(port: object) -> None:
    """A field that takes a number or a name takes both, in Kubernetes' kinds and in KServe's."""
    probe = {"httpGet": {"path": "/", "port": port}}
    predictor = {"containers": [{"name": "a", "image": "b", "readinessProbe": probe}]}

    assert problems(changed(DEPLOYMENT, *CONTAINER, "livenessProbe", value=probe)) == []
    assert problems(changed(INFERENCE_SERVICE, "spec", "predictor", value=predictor)) == []


@pytest.mark.parametrize("quantity", ["500m", "1Gi", 2, "0.5", "1e3"])
def test_quantity(quantity: object) -> None:
    """A quantity is a number, or a string of Kubernetes' form."""
    resources = {"requests": {"cpu": quantity}}

    assert problems(changed(DEPLOYMENT, *CONTAINER, "resources", value=resources)) == []


def test_bad_quantity() -> None:
    """A unit that Kubernetes does not know is found."""
    resources = {"requests": {"memory": "1GB"}}

    assert problems(changed(DEPLOYMENT, *CONTAINER, "resources", value=resources))


@pytest.mark.parametrize(
    "kind",
    [
        "serving.kserve.io/v1beta1 InferenceService",
        "serving.kserve.io/v1alpha1 ServingRuntime",
        "serving.kserve.io/v1alpha1 ClusterServingRuntime",
        "keda.sh/v1alpha1 ScaledObject",
        "keda.sh/v1alpha1 TriggerAuthentication",
        "serving.knative.dev/v1 Service",
        "gateway.networking.k8s.io/v1 Gateway",
        "gateway.networking.k8s.io/v1 HTTPRoute",
        "monitoring.coreos.com/v1 PodMonitor",
        "monitoring.coreos.com/v1 ServiceMonitor",
    ],
)
def test_custom_kind(kind: str) -> None:
    """Custom resources have their own schema: a field that it does not name is found."""
    api_version, name = kind.split()
    found = problems({"apiVersion": api_version, "kind": name, "metadata": {"name": "a"}, "x": 1})

    assert "x: unknown field" in found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json.gz")), ids=lambda path: path.name)
def test_source_is_told(path: Path) -> None:
    """The README says which version of which module a file was made from."""
    module = json.loads(gzip.decompress(path.read_bytes()))["module"]

    assert f"| `{path.name}` | `{module}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


def patterns_of(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(pattern := schema.get("pattern"), str):
            yield pattern
        schema = list(schema.values())
    if isinstance(schema, list):
        for value in schema:
            yield from patterns_of(value)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json.gz")), ids=lambda path: path.name)
def test_patterns_can_be_read(path: Path) -> None:
    """The patterns, written for Go, are ones that Python takes, too."""
    for pattern in patterns_of(json.loads(gzip.decompress(path.read_bytes()))):
        re.compile(pattern)
