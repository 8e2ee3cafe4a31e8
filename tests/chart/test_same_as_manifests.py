"""The chart and manifests/kserve decide alike: who changes one is told of the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from openai_proxy.config import variable_of
from tests.chart.helm import Rendered, render

MANIFESTS = Path(__file__).parents[2] / "manifests" / "kserve"
# The chart writes the model's name where a runtime for all models has a place for it.
_NAME = "{{.Name}}"


def manifest(path: str) -> dict[str, Any]:
    loaded = yaml.safe_load((MANIFESTS / path).read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def named(value: Any) -> Any:
    """Return the manifest with the model's name in its place."""
    if isinstance(value, dict):
        return {key: named(held) for key, held in value.items()}
    if isinstance(value, list):
        return [named(held) for held in value]
    return value.replace(_NAME, "smollm2") if isinstance(value, str) else value


def without_file(held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return volumes or mounts but for that of the proxy's configuration."""
    return [entry for entry in held if entry["name"] != "config"]


@pytest.fixture(scope="module")
def release() -> Rendered:
    """The model of manifests/kserve/smollm2, and the proxy in front of it."""
    return render({"models": {"smollm2": {"storageUri": "pvc://models/smollm2"}}})


# Here settings are variables, in the chart they are a file.
_FILE = {"env", "volumeMounts"}
PROXY = manifest("proxy/deployment.yaml")["spec"]
RUNTIME = named(manifest("runtime/serving-runtime.yaml"))["spec"]
PREDICTOR = manifest("smollm2/inference-service.yaml")["spec"]["predictor"]


@pytest.mark.parametrize("part", sorted(set(PROXY["template"]["spec"]["containers"][0]) - _FILE))
def test_proxy_container(release: Rendered, part: str) -> None:
    """Image, probes, resources and security of the proxy are those of its manifest."""
    found = release.one("Deployment")["spec"]["template"]["spec"]["containers"][0]

    assert found[part] == PROXY["template"]["spec"]["containers"][0][part]


@pytest.mark.parametrize("part", sorted(set(PROXY["template"]["spec"]) - {"containers", "volumes"}))
def test_proxy_pod(release: Rendered, part: str) -> None:
    """The proxy's pod is that of its manifest."""
    found = release.one("Deployment")["spec"]["template"]["spec"]

    assert found[part] == PROXY["template"]["spec"][part]


@pytest.mark.parametrize("part", ["replicas", "strategy"])
def test_proxy_deployment(release: Rendered, part: str) -> None:
    """As many pods, replaced in the same way."""
    assert release.one("Deployment")["spec"][part] == PROXY[part]


def test_proxy_settings(release: Rendered) -> None:
    """The proxy is set up as its manifest does it."""
    env = {
        entry["name"]: entry["value"] for entry in PROXY["template"]["spec"]["containers"][0]["env"]
    }

    held = yaml.safe_load(release.one("ConfigMap")["data"]["config.yaml"])
    # A change of the manifest brings new pods: only a file can be read again.
    assert held.pop("config_poll_seconds") == 0
    found = {
        variable_of(name): json.dumps(value) if isinstance(value, dict) else str(value)
        for name, value in held.items()
    }
    assert found == env


def test_proxy_volumes(release: Rendered) -> None:
    """Beside the file of settings the chart mounts what the manifest does."""
    given = PROXY["template"]["spec"]
    found = release.one("Deployment")["spec"]["template"]["spec"]

    assert without_file(found["volumes"]) == given["volumes"]
    mounts = without_file(found["containers"][0]["volumeMounts"])
    assert mounts == given["containers"][0]["volumeMounts"]


def test_proxy_annotations(release: Rendered) -> None:
    """Prometheus finds the proxy in the same way."""
    annotations = release.one("Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert PROXY["template"]["metadata"]["annotations"].items() <= annotations.items()


@pytest.mark.parametrize("part", sorted(RUNTIME["containers"][0]))
def test_runtime_container(release: Rendered, part: str) -> None:
    """Image, arguments, probes, resources and security of the predictor are the runtime's."""
    found = release.one("ServingRuntime", "smollm2")["spec"]["containers"][0]

    assert found[part] == RUNTIME["containers"][0][part]


@pytest.mark.parametrize(
    "part", sorted(set(RUNTIME) - {"containers", "annotations", "supportedModelFormats"})
)
def test_runtime(release: Rendered, part: str) -> None:
    """What the runtime says beside its container is the same."""
    assert release.one("ServingRuntime", "smollm2")["spec"][part] == RUNTIME[part]


@pytest.mark.parametrize("part", sorted(set(PREDICTOR) - {"model"}))
def test_inference_service(release: Rendered, part: str) -> None:
    """Drain, strategy and the pod's settings are the same, here of the InferenceService."""
    found = release.one("InferenceService", "smollm2")["spec"]["predictor"]

    assert found[part] == PREDICTOR[part]


def test_predictor_annotations(release: Rendered) -> None:
    """Prometheus finds the predictor in the same way."""
    found = release.one("InferenceService", "smollm2")["spec"]["predictor"]

    assert found["annotations"] == RUNTIME["annotations"]


def test_headless_service(release: Rendered) -> None:
    """The Service on the predictor's pods is the same."""
    assert (
        release.one("Service", "smollm2-pods")["spec"] == manifest("smollm2/service.yaml")["spec"]
    )


@pytest.mark.parametrize("kind", ["NetworkPolicy", "PodDisruptionBudget"])
def test_bounds_of_the_predictor(release: Rendered, kind: str) -> None:
    """Who reaches the predictor, and how many of its pods may be missing, is the same."""
    file = {"NetworkPolicy": "network-policy", "PodDisruptionBudget": "pod-disruption-budget"}[kind]

    assert release.one(kind, "smollm2")["spec"] == manifest(f"smollm2/{file}.yaml")["spec"]


def test_proxy_policy(release: Rendered) -> None:
    """The proxy is reached on the same port, and reaches DNS and predictors' ports alone."""
    found = release.one("NetworkPolicy")["spec"]
    given = manifest("proxy/network-policy.yaml")["spec"]

    assert found["ingress"] == given["ingress"]
    assert found["egress"][0] == given["egress"][0]
    assert found["egress"][1]["ports"] == given["egress"][1]["ports"]
