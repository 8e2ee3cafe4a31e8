"""The ServingTemplate against SAP AI Core's documented rules, and the InferenceService from it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kserve_llamacpp.config import add_flags
from openai_proxy.app import HEALTH_ROUTES
from openai_proxy.config import Settings
from openai_proxy.flags import parse
from tests.manifests import sap_ai_core
from tests.manifests.schemas import problems

DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "sap-ai-core.md").read_text(encoding="utf-8")
TEMPLATE = sap_ai_core.load()
INPUTS = TEMPLATE["spec"]["inputs"]
PARAMETERS = INPUTS["parameters"]
DEFAULTS = sap_ai_core.defaults(TEMPLATE)
STRINGS = sap_ai_core.strings(TEMPLATE)

# As SAP's documentation lists them (Serving Templates; API Schema Spec ai.sap.com/v1alpha1; KServe
# Spec serving.kserve.io/v1beta1).
MANDATORY_ANNOTATIONS = {"scenarios.ai.sap.com/name", "executables.ai.sap.com/name"}
OPTIONAL_ANNOTATIONS = {
    "scenarios.ai.sap.com/description",
    "executables.ai.sap.com/description",
    "executables.ai.sap.com/cascade-update-deployments",
}
ARTIFACT_ANNOTATION = re.compile(r"artifacts\.ai\.sap\.com/[a-z0-9]+\.(kind|description|labels)")
MANDATORY_LABELS = {"scenarios.ai.sap.com/id", "ai.sap.com/version"}
SCALING_ANNOTATIONS = {
    "autoscaling.knative.dev/metric",
    "autoscaling.knative.dev/target",
    "autoscaling.knative.dev/targetBurstCapacity",
    "autoscaling.knative.dev/window",
    "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
    "autoscaling.knative.dev/scale-down-delay",
}
# Of its own, before the container hears of its end
KNATIVE_DRAIN_SECONDS = 30
PREDICTOR_FIELDS = {
    "containers",
    "imagePullSecrets",
    "minReplicas",
    "maxReplicas",
    "containerConcurrency",
    "timeout",
    "terminationGracePeriodSeconds",
}


def rendered(**parameters: str) -> dict[str, Any]:
    artifacts = {"model": "s3://bucket/models/smollm2"}
    return sap_ai_core.render(TEMPLATE, "d1", parameters, artifacts)


def predictor() -> dict[str, Any]:
    found: dict[str, Any] = rendered()["spec"]["predictor"]
    return found


def container() -> dict[str, Any]:
    (found,) = predictor()["containers"]
    assert isinstance(found, dict)
    return found


def proxy_settings() -> Settings:
    """Read the container's arguments as the proxy in the image reads them."""
    flags = parse(container()["args"])
    return Settings(**flags, backend="llamacpp", model_path="/mnt/models")


def predictor_flags(*arguments: str) -> argparse.Namespace:
    """Read the predictor's own flags as it reads them."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return parser.parse_args(arguments)


def test_kind() -> None:
    """It is a ServingTemplate that makes InferenceServices."""
    assert (TEMPLATE["apiVersion"], TEMPLATE["kind"]) == ("ai.sap.com/v1alpha1", "ServingTemplate")
    assert TEMPLATE["spec"]["template"]["apiVersion"] == "serving.kserve.io/v1beta1"


def test_executable_id() -> None:
    """The executable's id has no separator but hyphens, and is the file's name."""
    name = TEMPLATE["metadata"]["name"]

    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert sap_ai_core.TEMPLATE.stem == name


def test_annotations_of_the_template() -> None:
    """The mandatory annotations are there, and none that SAP does not know."""
    annotations = set(TEMPLATE["metadata"]["annotations"])
    others = annotations - MANDATORY_ANNOTATIONS - OPTIONAL_ANNOTATIONS

    assert annotations >= MANDATORY_ANNOTATIONS
    assert [name for name in others if not ARTIFACT_ANNOTATION.fullmatch(name)] == []


def test_labels_of_the_template() -> None:
    """The mandatory labels are there, and no other; all are strings."""
    labels = TEMPLATE["metadata"]["labels"]

    assert set(labels) == MANDATORY_LABELS
    assert all(isinstance(value, str) for value in labels.values())


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter["name"])
def test_parameter(parameter: dict[str, Any]) -> None:
    """A parameter is a string with a default and a description: SAP knows no other type."""
    assert set(parameter) == {"name", "type", "default", "description"}
    assert parameter["type"] == "string"
    assert isinstance(parameter["default"], str)
    assert parameter["description"].endswith(".")


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter["name"])
def test_parameter_is_documented(parameter: dict[str, Any]) -> None:
    """The documentation has each parameter, with its default and its description."""
    name, default, text = (parameter[key] for key in ("name", "default", "description"))

    assert f"| `{name}` | `{default}` | {text} |" in DOCUMENTATION


def test_model_name_is_a_parameter() -> None:
    """SAP's SDK finds a deployment's model by the parameter modelName."""
    assert "modelName" in DEFAULTS


def test_parameters_have_names_of_their_own() -> None:
    """No parameter is declared twice."""
    assert len(DEFAULTS) == len(PARAMETERS)


@pytest.mark.parametrize("artifact", INPUTS["artifacts"], ids=lambda artifact: artifact["name"])
def test_artifact(artifact: dict[str, Any]) -> None:
    """An artifact's key has no separators, and an annotation says that it is a model."""
    kind = f"artifacts.ai.sap.com/{artifact['name']}.kind"

    assert re.fullmatch(r"[a-z0-9]+", artifact["name"])
    assert TEMPLATE["metadata"]["annotations"][kind] == "model"


def test_placeholders_are_the_inputs() -> None:
    """Every placeholder is declared, and every input is used."""
    used = {name for text in STRINGS.values() for name in sap_ai_core.PLACEHOLDER.findall(text)}
    declared = {f"inputs.parameters.{name}" for name in DEFAULTS}
    declared |= {f"inputs.artifacts.{artifact['name']}" for artifact in INPUTS["artifacts"]}

    assert used == declared


def test_annotations_of_the_service() -> None:
    """Only SAP's scaling annotations are used, and their values are strings."""
    annotations = rendered()["metadata"]["annotations"]

    assert set(annotations) <= SCALING_ANNOTATIONS
    assert all(isinstance(value, str) for value in annotations.values())


def test_labels_of_the_service() -> None:
    """The resource plan is chosen by its label, for which the instance type is the alternative."""
    assert rendered(resourcePlan="infer.s")["metadata"]["labels"] == {
        "ai.sap.com/resourcePlan": "infer.s"
    }


def test_service_is_one_that_kserve_takes() -> None:
    """What the template renders to has no field that KServe does not know."""
    assert problems(rendered()) == []


def test_fields_of_the_predictor() -> None:
    """Only the fields that SAP lists are used."""
    assert set(rendered()["spec"]) == {"predictor"}
    assert set(predictor()) <= PREDICTOR_FIELDS


def test_concurrency_target_is_the_number_of_sequences() -> None:
    """By default a replica is meant for as many requests as the predictor decodes together."""
    assert DEFAULTS["concurrencyTarget"] == DEFAULTS["numSequences"]
    assert DEFAULTS["numSequences"] == str(predictor_flags().max_sequences)


def test_scaling_follows_the_parameters() -> None:
    """What scales a deployment is all in the configuration's hands."""
    service = rendered(
        minReplicas="0",
        maxReplicas="5",
        concurrencyTarget="1",
        targetBurstCapacity="-1",
        scalingWindow="10s",
        scaleDownDelay="15m",
        scaleToZeroRetention="1m",
    )

    assert service["spec"]["predictor"]["minReplicas"] == 0
    assert service["spec"]["predictor"]["maxReplicas"] == 5
    assert service["metadata"]["annotations"] == {
        "autoscaling.knative.dev/metric": "concurrency",
        "autoscaling.knative.dev/target": "1",
        "autoscaling.knative.dev/targetBurstCapacity": "-1",
        "autoscaling.knative.dev/window": "10s",
        "autoscaling.knative.dev/scale-down-delay": "15m",
        "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod": "1m",
    }


@pytest.mark.parametrize(
    "field", ["minReplicas", "maxReplicas", "timeout", "terminationGracePeriodSeconds"]
)
def test_numbers_are_numbers(field: str) -> None:
    """A parameter is a string, but what it is put into is a number."""
    assert isinstance(predictor()[field], int)


def test_container_runs_as_nobody() -> None:
    """SAP AI Core's rules and the restricted profile, on the container: it has no other place."""
    assert container()["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "runAsGroup": 65534,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_no_hooks() -> None:
    """Knative has a preStop hook of its own, and refuses another."""
    assert "lifecycle" not in container()


def test_image_and_its_secret() -> None:
    """Image and pull secret are the configuration's."""
    spec = rendered(image="r/all-in-one:1", imagePullSecret="mine")["spec"]["predictor"]

    assert spec["containers"][0]["image"] == "r/all-in-one:1"
    assert spec["imagePullSecrets"] == [{"name": "mine"}]


def test_model_comes_from_the_artifact() -> None:
    """KServe downloads what STORAGE_URI names, and the image looks where it puts it."""
    assert container()["env"] == [{"name": "STORAGE_URI", "value": "s3://bucket/models/smollm2"}]


def test_one_port() -> None:
    """The one port is the proxy's, and is not named, since Knative takes few names."""
    assert container()["ports"] == [{"containerPort": proxy_settings().port, "protocol": "TCP"}]


@pytest.mark.parametrize("probe", ["readinessProbe", "livenessProbe"])
def test_probe(probe: str) -> None:
    """Probes ask what the proxy answers, on the one port, below /v1."""
    asked = container()[probe]["httpGet"]

    assert asked["path"] in HEALTH_ROUTES
    assert asked["path"].startswith("/v1/")
    assert asked["port"] == proxy_settings().port


def test_pod_has_the_time_to_drain() -> None:
    """Kubernetes waits longer than the drain takes; Knative does, too, by the timeout."""
    settings = proxy_settings()
    needed = settings.drain_delay_seconds + settings.grace_seconds

    assert predictor()["terminationGracePeriodSeconds"] > needed
    assert predictor()["timeout"] > KNATIVE_DRAIN_SECONDS + needed


def test_timeouts_are_one() -> None:
    """Knative and the proxy give up on a request at the same time."""
    assert predictor()["timeout"] == proxy_settings().request_timeout_seconds


def test_arguments_of_the_predictor() -> None:
    """What follows -- is known to the predictor, with its own defaults."""
    args = predictor_flags(*proxy_settings().backend_args)

    assert args == predictor_flags()


def test_arguments_follow_the_parameters() -> None:
    """Model name, context, sequences and threads reach proxy and predictor."""
    (found,) = rendered(
        modelName="phi-3", contextLength="8192", numSequences="4", numThreads="3", logLevel="debug"
    )["spec"]["predictor"]["containers"]
    flags = parse(found["args"])
    args = predictor_flags(*flags["backend_args"])

    assert flags["model_name"] == "phi-3"
    assert flags["log_level"] == "debug"
    assert (args.n_ctx, args.max_sequences, args.n_threads) == (8192, 4, 3)


def test_values_are_quoted() -> None:
    """A value that YAML would read as something else stays what it is."""
    (found,) = rendered(modelName="no: 1", image="on")["spec"]["predictor"]["containers"]

    assert found["args"][0] == "--model-name=no: 1"
    assert found["image"] == "on"


def test_one_template_in_the_folder() -> None:
    """SAP AI Core reads the whole folder: it holds templates and nothing else."""
    folder = sap_ai_core.TEMPLATE.parent
    kinds = [yaml.safe_load(path.read_text(encoding="utf-8"))["kind"] for path in folder.iterdir()]

    assert kinds == ["ServingTemplate"]
