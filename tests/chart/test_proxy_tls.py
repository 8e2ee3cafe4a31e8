"""The proxy speaks HTTPS with a Secret's certificate, and so does all that talks to it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import HelmFailed, Rendered, render
from tests.chart.test_proxy import checksum, container, pod, settings

TLS = {"secretName": "proxy-tls"}
MUTUAL = {**TLS, "clientCASecretName": "clients"}


def rendered(tls: dict[str, str], **proxy: Any) -> Rendered:
    return render({"proxy": {"tls": tls, **proxy}})


def mounted(release: Rendered) -> dict[str, str]:
    """Return the mounted volumes but /tmp, as path: Secret."""
    secrets = {entry["name"]: entry.get("secret", {}) for entry in pod(release)["volumes"]}
    return {
        mount["mountPath"]: secrets[mount["name"]]["secretName"]
        for mount in container(release)["volumeMounts"]
        if mount["name"] not in ("tmp", "config")
    }


def schemes(release: Rendered) -> set[str | None]:
    found = container(release)
    probes = [found[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    return {probe["httpGet"].get("scheme") for probe in probes}


def test_http_by_default() -> None:
    """Without a Secret nothing speaks HTTPS."""
    release = render()

    assert mounted(release) == {}
    assert schemes(release) == {None}
    assert "appProtocol" not in release.one("Service")["spec"]["ports"][0]
    assert not [name for name in settings({}) if "tls" in name]


def test_https() -> None:
    """The Secret is mounted as a folder, which follows it, and the settings name its files."""
    release = rendered(TLS)

    assert mounted(release) == {"/etc/openai-proxy-tls": "proxy-tls"}
    assert not [mount for mount in container(release)["volumeMounts"] if "subPath" in mount]
    data = settings({"proxy": {"tls": TLS}})
    assert data["tls_cert_file"] == "/etc/openai-proxy-tls/tls.crt"
    assert data["tls_key_file"] == "/etc/openai-proxy-tls/tls.key"
    assert "tls_client_ca_file" not in data
    assert checksum(release) != checksum(render())


def test_who_talks_to_it() -> None:
    """Probes, the Service, monitoring and `helm test` use HTTPS."""
    release = rendered(TLS, serviceMonitor={"enabled": True})

    assert schemes(release) == {"HTTPS"}
    assert release.one("Service")["spec"]["ports"][0]["appProtocol"] == "https"
    (endpoint,) = release.one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"] == {"insecureSkipVerify": True}
    annotations = release.one("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scheme"] == "https"
    for tested in release.all("Pod"):
        assert [text for text in tested["spec"]["containers"][0]["args"] if "://" in text][-1] == (
            f"https://{release.one('Service')['metadata']['name']}:80"
        )


def test_own_probes_are_kept() -> None:
    """A probe of another kind is left as it is."""
    release = rendered(TLS, livenessProbe={"tcpSocket": {"port": "http"}, "httpGet": None})

    assert (
        "httpGet" not in container(release)["livenessProbe"]
        or not (container(release)["livenessProbe"]["httpGet"])
    )
    assert container(release)["livenessProbe"]["tcpSocket"] == {"port": "http"}


def test_clients_certificates() -> None:
    """The authorities of clients are mounted, without a key that is beside them."""
    release = rendered(MUTUAL)

    assert mounted(release) == {
        "/etc/openai-proxy-tls": "proxy-tls",
        "/etc/openai-proxy-clients": "clients",
    }
    (volume,) = [entry for entry in pod(release)["volumes"] if entry["name"] == "clients"]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    data = settings({"proxy": {"tls": MUTUAL}})
    assert data["tls_client_ca_file"] == "/etc/openai-proxy-clients/ca.crt"


def test_checks_without_a_certificate() -> None:
    """`helm test` has no certificate: it checks health alone."""
    (tested,) = rendered(MUTUAL).all("Pod")

    assert tested["metadata"]["name"].endswith("-health")


@pytest.mark.parametrize(
    ("proxy", "says"),
    [
        ({"tls": {"clientCASecretName": "clients"}}, "proxy.tls.secretName is not"),
        (
            {"env": [{"name": "OPENAI_PROXY_TLS_CERT_FILE", "value": "f"}]},
            "use proxy.tls.secretName instead",
        ),
        ({"config": {"tls_cert_file": "f"}}, "tls_cert_file"),
    ],
)
def test_refusals(proxy: dict[str, Any], says: str) -> None:
    """Certificates of clients without HTTPS, and paths beside the Secret's, are refused."""
    with pytest.raises(HelmFailed, match=says):
        render({"proxy": proxy})


def test_lists_among_the_settings() -> None:
    """A setting that is a list is one in the file, too."""
    data = settings({"proxy": {"config": {"cors_allow_origins": ["https://a.example"]}}})

    assert data["cors_allow_origins"] == ["https://a.example"]
