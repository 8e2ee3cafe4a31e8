"""Nothing secret is in the repository, and what must be made is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.manifests.test_kserve import FILES, OBJECTS, ROOT, load, name_of

SECRETS = ROOT / "secrets"
DOCS = (ROOT.parent / "docs" / "secrets.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", OBJECTS, ids=name_of)
def test_no_secret_is_applied(path: Path) -> None:
    """No manifest is a Secret: it would lie in the repository, or overwrite the real one."""
    assert load(path)["kind"] != "Secret"


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name == "kustomization.yaml"], ids=name_of
)
def test_no_secret_is_generated(path: Path) -> None:
    """No kustomization makes a Secret from values beside it."""
    assert "secretGenerator" not in load(path)


@pytest.mark.parametrize("path", sorted(SECRETS.rglob("*.yaml")), ids=name_of)
def test_named_secrets_are_documented(path: Path) -> None:
    """The docs say how to make each Secret that is named."""
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"Secret\s+(?:#\s+)?`([a-z0-9-]+)`", text):
        assert re.search(rf"create secret [a-z-]+ {name}\b", DOCS), f"docs/secrets.md: {name}"


@pytest.mark.parametrize("name", ["s3", "huggingface"])
def test_storage_secrets_reach_the_initializer(name: str) -> None:
    """The InferenceService's ServiceAccount names the Secret: KServe looks for it there."""
    account = load(SECRETS / name / "service-account.yaml")
    patch = yaml.safe_load(load(SECRETS / name / "kustomization.yaml")["patches"][0]["patch"])

    assert patch["spec"]["predictor"]["serviceAccountName"] == account["metadata"]["name"]
    assert account["secrets"] == [{"name": f"storage-{name}"}]


def test_pull_secret_reaches_every_pod() -> None:
    """Predictors and proxy alike pull with the Secret."""
    patches = load(SECRETS / "registry" / "kustomization.yaml")["patches"]

    assert {patch["target"]["kind"] for patch in patches} == {"InferenceService", "Deployment"}
    for patch in patches:
        assert "imagePullSecrets" in patch["patch"]


def test_ingress_leads_to_the_proxy() -> None:
    """TLS ends at the Ingress, whose only way is the proxy's Service."""
    ingress = load(SECRETS / "tls" / "ingress.yaml")["spec"]
    service = load(ROOT / "kserve" / "proxy" / "service.yaml")
    (path,) = ingress["rules"][0]["http"]["paths"]

    assert ingress["tls"][0]["hosts"] == [ingress["rules"][0]["host"]]
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] == service["spec"]["ports"][0]["name"]
