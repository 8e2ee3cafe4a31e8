"""The manifests applied to a real cluster, as a user applies them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client, config

from tests.e2e.cluster import Cluster, open_cluster, wait_until

HERE = Path(__file__).parent
_READY_SECONDS = 300
_NAMESPACE = "kserve-llamacpp-e2e"
_VOLUME = "kserve-llamacpp-e2e"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with KServe that holds our images."""
    with open_cluster(os.environ) as opened:
        for target in ("predictor", "proxy"):
            opened.build(target, f"kserve-llamacpp/{target}:e2e")
        config.load_kube_config(opened.environ["KUBECONFIG"])
        yield opened


@pytest.fixture(scope="session")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of our own; it and the volume are gone afterwards."""
    cluster.kubectl("create", "namespace", _NAMESPACE)
    try:
        yield _NAMESPACE
    finally:
        cluster.kubectl("delete", "namespace", _NAMESPACE, "--wait=true", "--timeout=120s")
        cluster.kubectl("delete", "persistentvolume", _VOLUME, "--ignore-not-found")


@pytest.fixture(scope="session")
def model_volume(cluster: Cluster, namespace: str, model_path: Path) -> None:
    """The claim `models`, with the default model in its folder smollm2."""
    cluster.kubectl("-n", namespace, "apply", "-f", f"{HERE}/volume.yaml")
    cluster.kubectl("-n", namespace, "wait", "pod/model-writer", "--for=condition=Ready")
    store = f"mkdir -p /models/smollm2 && cat > '/models/smollm2/{model_path.name}'"
    shell = ("exec", "-i", "model-writer", "--", "sh", "-c", store)
    cluster.kubectl("-n", namespace, *shell, data=model_path.read_bytes())
    cluster.kubectl("-n", namespace, "delete", "pod", "model-writer")


@pytest.fixture(scope="session")
def applied(cluster: Cluster, namespace: str, model_volume: None) -> Iterator[dict[str, float]]:
    """Runtime, InferenceService and proxy, all ready; the seconds that each took from apply.

    From here on the namespace takes only pods that hold to the restricted profile.
    """
    profile = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", namespace, profile)
    started = time.monotonic()
    cluster.kubectl("-n", namespace, "apply", "-k", f"{HERE}/overlay")
    wait_until(
        "InferenceService smollm2 ready", _READY_SECONDS, lambda: is_ready(namespace, "smollm2")
    )
    service_seconds = time.monotonic() - started
    rollout = ("rollout", "status", "deployment/openai-proxy", "--timeout=120s")
    cluster.kubectl("-n", namespace, *rollout)
    yield {"InferenceService": service_seconds, "proxy": time.monotonic() - started}
    # A namespace's end takes half of its pods' grace period at least: let the pods go first.
    cluster.kubectl("-n", namespace, "delete", "-k", f"{HERE}/overlay", "--wait=true")
    core = client.CoreV1Api()
    wait_until("no pod left", 60, lambda: not core.list_namespaced_pod(namespace).items)


@pytest.fixture(scope="session")
def proxy_url(cluster: Cluster, namespace: str, applied: dict[str, float]) -> Iterator[str]:
    """Where the proxy answers from outside the cluster."""
    if cluster.node_port is None:
        with cluster.forward(namespace, "service/openai-proxy", 80) as url:
            yield url
    else:
        cluster.kubectl("-n", namespace, "apply", "-f", f"{HERE}/node-port.yaml")
        yield f"http://127.0.0.1:{cluster.node_port}"


def inference_service(namespace: str, name: str) -> dict[str, object]:
    """Return an InferenceService as the cluster has it."""
    found: dict[str, object] = client.CustomObjectsApi().get_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", namespace, "inferenceservices", name
    )
    return found


def is_ready(namespace: str, name: str) -> bool:
    """Tell whether an InferenceService says that it is ready."""
    status = inference_service(namespace, name).get("status", {})
    assert isinstance(status, dict)
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions", [])}
    return conditions.get("Ready") == "True"
