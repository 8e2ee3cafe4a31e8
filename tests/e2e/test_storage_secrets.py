"""Secrets for storage reach KServe's storage initializer, and nothing else in the pod."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.e2e.cluster import ROOT, Cluster, wait_until
from tests.e2e.state import pods, predictor_selector

MANIFESTS = ROOT / "manifests"
_PODS = predictor_selector("smollm2")

Apply = Callable[[str, Mapping[str, Any]], client.V1Pod]


@pytest.fixture
def apply(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Apply]:
    """Apply SmolLM2 with a component and changes to its predictor; return its first pod's spec."""

    def inner(component: str, changes: Mapping[str, Any]) -> client.V1Pod:
        paths = ("kserve/runtime", "kserve/smollm2")
        patch = [
            {"op": "add", "path": f"/spec/predictor/{path}", "value": value}
            for path, value in changes.items()
        ]
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(MANIFESTS / path, tmp_path) for path in paths],
            "components": [os.path.relpath(MANIFESTS / component, tmp_path)],
            "patches": [{"target": {"kind": "InferenceService"}, "patch": yaml.safe_dump(patch)}],
        }
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
        cluster.kubectl("-n", namespace, "apply", "-k", str(tmp_path))
        # Its model is nowhere: the pod will not start, but its spec is all that is asked for.
        found: client.V1Pod = wait_until("a pod", 60, lambda: pods(namespace, _PODS))[0]
        return found

    yield inner
    cluster.kubectl("-n", namespace, "delete", "-k", str(tmp_path), "--ignore-not-found")
    wait_until("no predictor left", 120, lambda: not pods(namespace, _PODS))


def test_s3(cluster: Cluster, namespace: str, apply: Apply) -> None:
    """Keys and endpoint of the ServiceAccount's Secret are the initializer's environment."""
    # KServe's own storage initializer is not one that the restricted profile admits.
    profile = "pod-security.kubernetes.io/enforce=baseline"
    cluster.kubectl("label", "namespace", namespace, profile, "--overwrite")
    keys = ("--from-literal=AWS_ACCESS_KEY_ID=a", "--from-literal=AWS_SECRET_ACCESS_KEY=b")
    cluster.kubectl("-n", namespace, "create", "secret", "generic", "storage-s3", *keys)
    endpoint = "serving.kserve.io/s3-endpoint=storage.example.com"
    cluster.kubectl("-n", namespace, "annotate", "secret", "storage-s3", endpoint)

    pod = apply("secrets/s3", {"model/storageUri": "s3://models/smollm2"})

    environment = {entry.name: entry for entry in pod.spec.init_containers[0].env}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert environment[name].value_from.secret_key_ref.name == "storage-s3"
    assert environment["S3_ENDPOINT"].value == "storage.example.com"
    assert not {entry.name for entry in pod.spec.containers[0].env} & set(environment)


def test_hugging_face(cluster: Cluster, namespace: str, apply: Apply) -> None:
    """The token arrives, and our storage container takes one quantisation, restricted."""
    profile = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", namespace, profile, "--overwrite")
    literal = "--from-literal=HF_TOKEN=a"
    cluster.kubectl("-n", namespace, "create", "secret", "generic", "storage-huggingface", literal)
    container = f"{MANIFESTS}/kserve/storage-container"
    name = ("clusterstoragecontainer", "gguf-q4-k-m", "--ignore-not-found", "--output=name")
    was_there = bool(cluster.kubectl("get", *name))
    if not was_there:
        cluster.kubectl("apply", "-k", container)
    try:
        pod = apply(
            "secrets/huggingface",
            {
                "model/storageUri": "hf://owner/Model-GGUF",
                "storageContainerName": "gguf-q4-k-m",
            },
        )
    finally:
        if not was_there:
            cluster.kubectl("delete", "-k", container)

    environment = {entry.name: entry for entry in pod.spec.init_containers[0].env}
    assert environment["HF_TOKEN"].value_from.secret_key_ref.name == "storage-huggingface"
    assert "*Q4_K_M.gguf" in environment["STORAGE_ALLOW_PATTERNS"].value
