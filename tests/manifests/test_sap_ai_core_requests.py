"""The bodies that an operator posts to SAP AI Core, against their documented shapes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from openai_proxy.config import ENV_PREFIX, Settings
from openai_proxy.flags import parse
from tests.manifests import sap_ai_core
from tests.manifests.sap_ai_core import request

REQUESTS = sap_ai_core.ROOT / "requests"
TEMPLATE = sap_ai_core.load()
DEFAULTS = sap_ai_core.defaults(TEMPLATE)
NAME = TEMPLATE["metadata"]["name"]
SCENARIO = TEMPLATE["metadata"]["labels"]["scenarios.ai.sap.com/id"]

SecretName = Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")


class Body(BaseModel):
    """A body that has these keys and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DockerRegistry(Body):
    """The data of a Docker registry secret."""

    dockerconfigjson: str = Field(alias=".dockerconfigjson")


class DockerRegistrySecret(Body):
    """POST /v2/admin/dockerRegistrySecrets."""

    name: str = SecretName
    data: DockerRegistry


class S3Credentials(Body):
    """The data of an object store secret for S3."""

    AWS_ACCESS_KEY_ID: str
    AWS_SECRET_ACCESS_KEY: str


class ObjectStoreSecret(Body):
    """POST /v2/admin/objectStoreSecrets."""

    name: str = SecretName
    type: Literal["S3"]
    bucket: str
    endpoint: str
    pathPrefix: str  # noqa: N815 - SAP's name
    region: str
    data: S3Credentials


class GenericSecret(Body):
    """POST /v2/admin/secrets."""

    name: str = SecretName
    data: dict[str, str]


class Repository(Body):
    """POST /v2/admin/repositories."""

    name: str
    url: str
    username: str
    password: str


class Application(Body):
    """POST /v2/admin/applications."""

    applicationName: str = Field(pattern=r"^[A-Za-z0-9_-]{3,64}$")  # noqa: N815 - SAP's name
    repositoryUrl: str  # noqa: N815 - SAP's name
    revision: str
    path: str


class Artifact(Body):
    """POST /v2/lm/artifacts."""

    name: str
    kind: Literal["model"]
    # <object store secret>/<path>, without a slash at the end
    url: str = Field(pattern=r"^ai://[a-z0-9.-]+(/[^/]+)+$")
    description: str
    scenarioId: str  # noqa: N815 - SAP's name


class ParameterBinding(Body):
    """A parameter's value."""

    key: str
    value: str


class ArtifactBinding(Body):
    """An artifact for one of the template's inputs."""

    key: str
    artifactId: str  # noqa: N815 - SAP's name


class Configuration(Body):
    """POST /v2/lm/configurations."""

    name: str
    executableId: str  # noqa: N815 - SAP's name
    scenarioId: str  # noqa: N815 - SAP's name
    versionId: str  # noqa: N815 - SAP's name
    parameterBindings: list[ParameterBinding]  # noqa: N815 - SAP's name
    inputArtifactBindings: list[ArtifactBinding]  # noqa: N815 - SAP's name


class Deployment(Body):
    """POST /v2/lm/deployments."""

    configurationId: str  # noqa: N815 - SAP's name
    ttl: str | None = Field(None, pattern=r"^[1-9][0-9]*[mhd]$")


SHAPES: dict[str, type[Body]] = {
    "docker-registry-secret": DockerRegistrySecret,
    "object-store-secret": ObjectStoreSecret,
    "generic-secret": GenericSecret,
    "repository": Repository,
    "application": Application,
    "artifact": Artifact,
    "configuration": Configuration,
    "deployment": Deployment,
}


@pytest.mark.parametrize("path", sorted(REQUESTS.iterdir()), ids=lambda path: path.stem)
def test_shape(path: Path) -> None:
    """A body has the keys and types that SAP documents, and no others."""
    SHAPES[path.stem].model_validate_json(path.read_text(encoding="utf-8"))


def test_registry_secret() -> None:
    """The template pulls with the secret that the body makes, a Docker configuration."""
    secret = request("docker-registry-secret")
    (credentials,) = json.loads(secret["data"][".dockerconfigjson"])["auths"].values()

    assert secret["name"] == DEFAULTS["imagePullSecret"]
    assert set(credentials) == {"username", "password"}


def test_object_store_secret() -> None:
    """The artifact lies in the object store that the secret opens, named as SAP wants it."""
    secret = request("object-store-secret")

    assert secret["name"] == "default"
    assert request("artifact")["url"].startswith(f"ai://{secret['name']}/")


def test_generic_secret() -> None:
    """The template takes the secret's values as settings: base64, known, and not overridden."""
    secret = request("generic-secret")
    service = sap_ai_core.render(TEMPLATE, "d1", {}, {"model": "s3://bucket/model"})
    given = parse(service["spec"]["predictor"]["containers"][0]["args"])
    names = {key.removeprefix(ENV_PREFIX).lower() for key in secret["data"]}

    assert secret["name"] == DEFAULTS["settingsSecret"]
    assert names <= set(Settings.model_fields) - set(given)
    for value in secret["data"].values():
        assert base64.b64decode(value, validate=True).decode("ascii").isprintable()


def test_application_reads_the_templates() -> None:
    """The application's path is the folder that holds the template."""
    root = sap_ai_core.ROOT.parents[1]

    assert root / request("application")["path"] == sap_ai_core.TEMPLATE.parent
    assert request("application")["repositoryUrl"] == request("repository")["url"]


def test_artifact_is_of_the_scenario() -> None:
    """An artifact is registered for the scenario that uses it."""
    assert request("artifact")["scenarioId"] == SCENARIO


def test_configuration_is_of_the_template() -> None:
    """A configuration names the template's executable, scenario and version."""
    configuration = request("configuration")

    assert configuration["executableId"] == NAME
    assert configuration["scenarioId"] == SCENARIO
    assert configuration["versionId"] == TEMPLATE["metadata"]["labels"]["ai.sap.com/version"]


def test_configuration_binds_the_inputs() -> None:
    """Every bound parameter is declared, and every artifact is bound."""
    artifacts = {entry["name"] for entry in TEMPLATE["spec"]["inputs"]["artifacts"]}

    assert set(sap_ai_core.bindings()) <= set(DEFAULTS)
    assert {
        entry["key"] for entry in request("configuration")["inputArtifactBindings"]
    } == artifacts


def test_configuration_keeps_target_and_sequences_together() -> None:
    """The example scales by as many requests as a replica decodes together."""
    assert sap_ai_core.bindings()["concurrencyTarget"] == sap_ai_core.bindings()["numSequences"]
