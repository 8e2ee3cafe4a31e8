"""What holds for every release, whatever its values: checked with each file of ci/."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.chart import helm
from tests.manifests.schemas import problems

FILES = sorted((helm.CHART / "ci").glob("*-values.yaml"))


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def file(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


@pytest.fixture(scope="module")
def release(file: Path) -> helm.Rendered:
    return helm.render(file=file)


def pods(release: helm.Rendered) -> list[dict[str, Any]]:
    """The parts of objects that become pods' specs."""
    found = [entry["spec"]["template"]["spec"] for entry in release.all("Deployment")]
    found += [entry["spec"] for entry in release.all("Pod")]
    return found + [entry["spec"]["predictor"] for entry in release.all("InferenceService")]


def containers(release: helm.Rendered) -> list[dict[str, Any]]:
    holders = [*pods(release), *(entry["spec"] for entry in release.all("ServingRuntime"))]
    return [container for holder in holders for container in holder.get("containers", [])]


def test_lint(file: Path) -> None:
    """Helm's linter has nothing to say."""
    assert "0 chart(s) failed" in helm.lint(file)


def test_api_takes_every_object(release: helm.Rendered) -> None:
    """Each object is one that its API takes, without unknown fields."""
    found = {entry["metadata"]["name"]: problems(entry) for entry in release.objects}

    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_object_twice(release: helm.Rendered) -> None:
    """No two objects have the same kind and name."""
    names = Counter((entry["kind"], entry["metadata"]["name"]) for entry in release.objects)

    assert [name for name, count in names.items() if count > 1] == []


def test_namespace_and_labels(release: helm.Rendered) -> None:
    """Each object is in the release's namespace, and says which release it is of."""
    for entry in release.objects:
        assert entry["metadata"]["namespace"] == "llm"
        assert entry["metadata"]["labels"]["app.kubernetes.io/instance"] == helm.RELEASE
        assert entry["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


def test_restricted_profile(release: helm.Rendered) -> None:
    """The restricted pod security profile admits every pod, and no root can be written."""
    assert containers(release)
    for container in containers(release):
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert (context["runAsUser"], context["runAsGroup"]) == (65534, 65534)
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_no_service_links_and_no_token(release: helm.Rendered) -> None:
    """No Service becomes a setting of a pod, and no pod has a token of the cluster's API."""
    for pod in pods(release):
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False


def test_services_find_pods(release: helm.Rendered) -> None:
    """Each Service, budget and policy selects the pods of a Deployment or InferenceService."""
    labels = [
        entry["spec"]["template"]["metadata"]["labels"] for entry in release.all("Deployment")
    ]
    labels += [
        {
            "app": f"isvc.{entry['metadata']['name']}-predictor",
            "serving.kserve.io/inferenceservice": entry["metadata"]["name"],
            "component": "predictor",
        }
        for entry in release.all("InferenceService")
    ]
    selectors = [entry["spec"]["selector"] for entry in release.all("Service")]
    budgets, policies = release.all("PodDisruptionBudget"), release.all("NetworkPolicy")
    selectors += [entry["spec"]["selector"]["matchLabels"] for entry in budgets]
    selectors += [entry["spec"]["podSelector"]["matchLabels"] for entry in policies]
    for selector in selectors:
        assert any(selector.items() <= held.items() for held in labels), selector


def test_monitors_find_one_service(release: helm.Rendered) -> None:
    """A ServiceMonitor selects exactly one Service, on a port that it has."""
    for monitor in release.all("ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [
            entry
            for entry in release.all("Service")
            if selector.items() <= entry["metadata"]["labels"].items()
        ]
        ports = [port["name"] for port in service["spec"]["ports"]]
        assert monitor["spec"]["endpoints"][0]["port"] in ports
