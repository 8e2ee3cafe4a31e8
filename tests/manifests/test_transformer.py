"""The proxy in the predictor's pod is the Deployment's proxy, under KServe's name."""

from __future__ import annotations

from typing import Any

import yaml

from tests.manifests.test_kserve import ROOT, load

KSERVE = ROOT / "kserve"
# What must differ: KServe's name, the way to the predictor, the pod's own kind of volume.
_OWN = {"name", "env"}


def container_in_pod() -> dict[str, Any]:
    patch = load(KSERVE / "smollm2-transformer" / "kustomization.yaml")["patches"][0]["patch"]
    (operation,) = yaml.safe_load(patch)
    (container,) = operation["value"]
    return dict(container)


def container_of_deployment() -> dict[str, Any]:
    deployment = load(KSERVE / "proxy" / "deployment.yaml")
    return dict(deployment["spec"]["template"]["spec"]["containers"][0])


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


def with_port_numbers(value: Any) -> Any:
    """Return a copy in which probes name the port by its number."""
    if isinstance(value, dict):
        return {
            key: 8000 if key == "port" and item == "http" else with_port_numbers(item)
            for key, item in value.items()
        }
    return value


def test_name_is_what_kserve_looks_for() -> None:
    """By this name KServe leads its Service to the proxy, not to the predictor."""
    assert container_in_pod()["name"] == "transformer-container"


def test_one_proxy() -> None:
    """Image, probes, rights and resources are those of the Deployment's container."""
    ours, theirs = container_in_pod(), container_of_deployment()

    assert ours.keys() == theirs.keys()
    for key in ours.keys() - _OWN:
        assert with_port_numbers(ours[key]) == with_port_numbers(theirs[key]), key


def test_upstream_is_the_pods_own_predictor() -> None:
    """The proxy asks the predictor beside it, on the runtime's port, and drains as always."""
    runtime = load(KSERVE / "runtime" / "serving-runtime.yaml")
    port = runtime["spec"]["containers"][0]["ports"][0]["containerPort"]
    ours, theirs = environment(container_in_pod()), environment(container_of_deployment())

    assert ours.pop("OPENAI_PROXY_UPSTREAM_URL") == f"http://127.0.0.1:{port}"
    theirs.pop("OPENAI_PROXY_UPSTREAM_URL")
    assert ours == theirs


def test_tmp_is_the_runtimes_volume() -> None:
    """The volume that the container mounts is one that the runtime's pod has."""
    runtime = load(KSERVE / "runtime" / "serving-runtime.yaml")
    volumes = {volume["name"] for volume in runtime["spec"]["volumes"]}

    assert {mount["name"] for mount in container_in_pod()["volumeMounts"]} <= volumes
