"""The API server, and KServe's webhooks in it, take every manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.cluster import ROOT, Cluster
from tests.manifests.schemas import problems

MANIFESTS = ROOT / "manifests"


def _kustomizations(kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(MANIFESTS.rglob("kustomization.yaml")):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if found["kind"] == kind:
            yield path.parent, found


BASES = [folder for folder, _ in _kustomizations("Kustomization")]
_USED = {
    (folder / component).resolve()
    for folder, found in _kustomizations("Kustomization")
    for component in found.get("components", ())
}
# Those of no base: users add them in overlays of their own.
COMPONENTS = [folder for folder, _ in _kustomizations("Component") if folder not in _USED]
# Root fills new volumes (docs/kubernetes.md): the one pod that the restricted profile refuses.
_WITH_ROOT = MANIFESTS / "kserve" / "model-volume"


def _name_of(folder: Path) -> str:
    return str(folder.relative_to(MANIFESTS))


@pytest.mark.parametrize("base", [base for base in BASES if base != _WITH_ROOT], ids=_name_of)
def test_base(cluster: Cluster, namespace: str, base: Path) -> None:
    """A server-side dry run of it passes, under the restricted profile."""
    _dry_run(cluster, namespace, base)


def test_base_with_root(cluster: Cluster) -> None:
    """The base with a pod of root passes where no profile is enforced."""
    _dry_run(cluster, "default", _WITH_ROOT)


@pytest.mark.parametrize("component", COMPONENTS, ids=_name_of)
def test_component(cluster: Cluster, namespace: str, component: Path, tmp_path: Path) -> None:
    """A model and the proxy are still taken with the component beside them."""
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [
            os.path.relpath(MANIFESTS / "kserve" / name, tmp_path) for name in ("smollm2", "proxy")
        ],
        "components": [os.path.relpath(component, tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")

    _dry_run(cluster, namespace, tmp_path)


def _dry_run(cluster: Cluster, namespace: str, folder: Path) -> None:
    """Show all objects to the API server, but kinds that this one lacks to their schema."""
    objects = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(folder))))
    kinds = set(cluster.kubectl("api-resources", "--no-headers").split())
    served = [found for found in objects if found["kind"] in kinds]
    for found in objects:
        if found not in served:
            assert problems(found) == []
    if served:
        apply = ("apply", "--dry-run=server", "-f", "-")
        data = yaml.safe_dump_all(served).encode()

        taken = cluster.kubectl("-n", namespace, *apply, data=data)

        assert taken.count("(server dry run)") == len(served)
