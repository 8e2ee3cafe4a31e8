"""A predictor speaks HTTPS with a Secret's certificate, and so does all that talks to it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.chart.helm import Rendered, render
from tests.chart.test_models import ON_KSERVE, PLAIN, container, pod

FOLDER = "/etc/kserve-llamacpp-tls"
KINDS = pytest.mark.parametrize("values", [ON_KSERVE, PLAIN], ids=["KServe", "Deployment"])


def rendered(values: dict[str, Any], secret: str = "smollm2-tls") -> Rendered:  # noqa: S107  # a name
    """A release whose model has this Secret, gRPC and a monitor."""
    model = {
        **values,
        "tls": {"secretName": secret},
        "grpc": {"enabled": True},
        "serviceMonitor": {"enabled": True},
    }
    trust = {"upstream_tls": {"ca_file": "/ca/ca.crt"}}
    return render({"proxy": {"config": trust}, "models": {"smollm2": model}})


def schemes(release: Rendered) -> set[str | None]:
    probes = [
        container(release)[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    return {probe["httpGet"].get("scheme") for probe in probes}


def protocols(release: Rendered) -> set[tuple[str, str | None]]:
    return {
        (port["name"], port.get("appProtocol"))
        for service in release.all("Service")
        if service["metadata"]["name"].startswith("smollm2")
        for port in service["spec"]["ports"]
    }


@KINDS
def test_http_by_default(values: dict[str, Any]) -> None:
    """Without a Secret nothing speaks HTTPS."""
    release = rendered(values, secret="")

    assert schemes(release) == {None}
    assert "ssl" not in str(container(release)["args"])
    assert protocols(release) == {("http", None), ("grpc", "kubernetes.io/h2c")}


@KINDS
def test_certificate(values: dict[str, Any]) -> None:
    """The Secret is mounted as a folder, which follows it, and the flags name its files."""
    release = rendered(values)
    runtimes = release.all("ServingRuntime")
    volumes = runtimes[0]["spec"]["volumes"] if runtimes else pod(release)["volumes"]

    arguments = container(release)["args"]
    assert f"--ssl_certfile={FOLDER}/tls.crt" in arguments
    assert f"--ssl_keyfile={FOLDER}/tls.key" in arguments
    mount = {"name": "tls", "mountPath": FOLDER, "readOnly": True}
    assert mount in container(release)["volumeMounts"]
    assert {"name": "tls", "secret": {"secretName": "smollm2-tls"}} in volumes


@KINDS
def test_who_talks_to_it(values: dict[str, Any]) -> None:
    """Probes, Services, monitoring and the proxy use HTTPS."""
    release = rendered(values)
    if release.all("InferenceService"):
        metadata = release.one("InferenceService", "smollm2")["spec"]["predictor"]
    else:
        metadata = release.one("Deployment", "smollm2")["spec"]["template"]["metadata"]

    assert schemes(release) == {"HTTPS"}
    assert protocols(release) == {("http", "https"), ("grpc", None)}
    (endpoint,) = release.one("ServiceMonitor", "smollm2")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert metadata["annotations"]["prometheus.io/scheme"] == "https"
    settings = yaml.safe_load(release.one("ConfigMap")["data"]["config.yaml"])
    assert settings["upstream_url"] == "https://smollm2-pods:8080"
