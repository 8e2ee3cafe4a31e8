"""The plain manifests hold to the rules that keep streams whole and pods admitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2] / "manifests"
FILES = sorted(ROOT.rglob("*.yaml"))
# SAP AI Core reads its template from Git: tests/manifests/test_sap_ai_core.py.
OBJECTS = [
    path for path in FILES if path.name != "kustomization.yaml" and "sap-ai-core" not in path.parts
]


def load(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pod_of(path: Path) -> dict[str, Any] | None:
    """Return the part of an object that becomes a pod's spec, if it has one."""
    found = load(path)
    match found["kind"]:
        case "Deployment":
            return dict(found["spec"]["template"]["spec"])
        case "InferenceService":
            return dict(found["spec"]["predictor"])
        case "ServingRuntime":
            return dict(found["spec"])
    return None


PODS = [path for path in OBJECTS if pod_of(path) is not None]
CONTAINERS = [path for path in PODS if "containers" in (pod_of(path) or {})]
# A ServingRuntime has neither field: its InferenceServices bring them.
WHOLE_PODS = [path for path in PODS if load(path)["kind"] != "ServingRuntime"]


@pytest.mark.parametrize("path", OBJECTS, ids=name_of)
def test_one_object_a_file(path: Path) -> None:
    """A file holds one object, in no namespace: the user's own is as good as any."""
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))

    assert len(documents) == 1
    assert "namespace" not in documents[0]["metadata"]


@pytest.mark.parametrize("path", OBJECTS, ids=name_of)
def test_kustomization_names_the_file(path: Path) -> None:
    """No file is forgotten by the kustomization beside it."""
    assert path.name in load(path.parent / "kustomization.yaml")["resources"]


@pytest.mark.parametrize("path", CONTAINERS, ids=name_of)
def test_restricted_profile(path: Path) -> None:
    """The restricted pod security profile admits the pod, and its root is read-only."""
    for container in (pod_of(path) or {})["containers"]:
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert (context["runAsUser"], context["runAsGroup"]) == (65534, 65534)
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("path", WHOLE_PODS, ids=name_of)
def test_no_service_links(path: Path) -> None:
    """A Service's name never becomes one of our settings."""
    assert (pod_of(path) or {})["enableServiceLinks"] is False


@pytest.mark.parametrize("path", WHOLE_PODS, ids=name_of)
def test_pods_have_the_time_to_drain(path: Path) -> None:
    """Kubernetes waits longer than drain delay and grace period take together."""
    pod = pod_of(path) or {}
    runtime = pod_of(ROOT / "kserve" / "runtime" / "serving-runtime.yaml") or {}
    container = pod.get("containers", runtime["containers"])[0]
    settings = dict(argument.lstrip("-").split("=", 1) for argument in container.get("args", []))
    for entry in container.get("env", []):
        settings[entry["name"].removeprefix("OPENAI_PROXY_").lower()] = entry["value"]

    needed = float(settings["drain_delay_seconds"]) + float(settings["grace_seconds"])

    assert pod["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("path", CONTAINERS, ids=name_of)
def test_container_is_scraped_on_its_own_port(path: Path) -> None:
    """Prometheus finds the metrics by the pod's annotations."""
    found = load(path)
    holder = found["spec"]
    annotations = holder.get("annotations") or holder["template"]["metadata"]["annotations"]
    port = (pod_of(path) or {})["containers"][0]["ports"][0]["containerPort"]

    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/port"] == str(port)
    assert annotations["prometheus.io/path"] == "/metrics"
