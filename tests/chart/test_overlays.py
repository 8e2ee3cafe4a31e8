"""Kustomize builds every overlay and base of manifests/, and the API takes what comes out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.schemas import problems

ROOT = Path(__file__).parents[2]
# Another system's templates and bodies, which no cluster takes as they are
_NOT_APPLIED = "ai.sap.com/"


def is_whole(folder: Path) -> bool:
    """Tell whether a folder is a base or an overlay, not a component for one."""
    text = (folder / "kustomization.yaml").read_text(encoding="utf-8")
    return bool(yaml.safe_load(text).get("kind") != "Component")


WHOLE = [
    path.parent
    for folder in ("manifests", "tests/e2e")
    for path in sorted((ROOT / folder).rglob("kustomization.yaml"))
    if is_whole(path.parent)
]


def kubectl() -> str:
    kit = Path(os.environ.get("KIT_STATE", "/var/lib/kserve-kit")) / "bin" / "kubectl"
    found = shutil.which("kubectl") or (os.fspath(kit) if kit.is_file() else None)
    if found is None:
        pytest.fail("no kubectl: put it on the PATH, https://kubernetes.io/docs/tasks/tools/")
    return found


def build(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found is not None]


SERVED = [folder for folder in WHOLE if folder.is_relative_to(ROOT / "manifests")]


@pytest.mark.parametrize("folder", SERVED, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_predictor_is_reached_from_inside(folder: Path) -> None:
    """An InferenceService has no public URL, and a NetworkPolicy that selects its pods."""
    objects = build(folder)
    policies = [found for found in objects if found["kind"] == "NetworkPolicy"]
    for service in objects:
        if service["kind"] != "InferenceService" or "storageUri" not in str(service):
            continue
        name = service["metadata"]["name"]
        mode = service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]
        visibility = {"Standard": "networking.kserve.io", "Knative": "networking.knative.dev"}[mode]
        labels = {
            "app": f"isvc.{name}-predictor",
            "serving.kserve.io/inferenceservice": name,
            "component": "predictor",
        }
        if mode == "Knative":
            del labels["app"]  # there it is the revision's name
        (policy,) = (
            found["spec"]
            for found in policies
            if found["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        )
        ports = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}

        assert service["metadata"]["labels"] == {f"{visibility}/visibility": "cluster-local"}
        assert all(rule["from"] for rule in policy["ingress"])
        assert ports >= ({8080, 8012, 8013, 8112, 9090} if mode == "Knative" else {8080})


def test_grpc(tmp_path: Path) -> None:
    """The component gives gRPC its flags, and its port in runtime, Services and policies."""
    names = ("runtime", "mistral-7b", "smollm2", "proxy")
    place = ROOT / "manifests" / "kserve"
    overlay = {
        "resources": [os.path.relpath(place / name, tmp_path) for name in names],
        "components": [os.path.relpath(place / "components" / "grpc", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")

    objects = build(tmp_path)
    (runtime,) = (found for found in objects if found["kind"] == "ServingRuntime")
    (container,) = runtime["spec"]["containers"]
    assert container["args"][-2:] == ["--enable_grpc=true", "--grpc_port=8081"]
    assert [port["containerPort"] for port in container["ports"]] == [8080, 8081]
    opened = {
        f"{found['kind']} {found['metadata']['name']}"
        for found in objects
        if found["kind"] in ("Service", "NetworkPolicy") and "port: 8081" in yaml.safe_dump(found)
    }
    assert opened == {
        f"{kind} {name}"
        for kind, name in (
            *(("Service", f"{model}-pods") for model in ("smollm2", "mistral-7b")),
            *(("NetworkPolicy", model) for model in ("smollm2", "mistral-7b")),
        )
    }
    for found in objects:
        assert problems(found) == [], found["metadata"]["name"]


def test_images_by_digest(tmp_path: Path) -> None:
    """An overlay names all images by digest, in Deployments and in KServe's objects alike."""
    digest = f"sha256:{'a1' * 32}"
    images = ("predictor", "proxy")
    overlay = {
        "resources": [
            os.path.relpath(ROOT / "manifests" / "kserve" / name, tmp_path)
            for name in ("runtime", "smollm2-transformer", "proxy")
        ],
        "images": [
            {
                "name": f"kserve-llamacpp/{name}",
                "newName": f"registry.example.com/{name}",
                "digest": digest,
            }
            for name in images
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")

    found = set(re.findall(r"image: (\S+)", yaml.safe_dump(build(tmp_path))))

    assert found == {f"registry.example.com/{name}@{digest}" for name in images}


@pytest.mark.parametrize("folder", WHOLE, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_overlay(folder: Path) -> None:
    """The built objects have no unknown field and lack none."""
    for found in build(folder):
        if not found["apiVersion"].startswith(_NOT_APPLIED):
            assert problems(found) == [], found["metadata"]["name"]
