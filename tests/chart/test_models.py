"""A model's objects follow its values: on KServe, in Knative mode, and as a plain Deployment."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import Rendered, render

ON_KSERVE = {"storageUri": "pvc://models/smollm2"}
PLAIN = {"kind": "Deployment", "volume": {"claimName": "models", "path": "smollm2"}}
KNATIVE = {**ON_KSERVE, "deploymentMode": "Knative"}


def model(**values: Any) -> Rendered:
    """A release with the one model smollm2."""
    return render({"models": {"smollm2": values}})


def kinds(release: Rendered) -> set[str]:
    """The kinds of the model's own objects."""
    return {
        entry["kind"]
        for entry in release.objects
        if entry["metadata"]["labels"]["app.kubernetes.io/component"] == "predictor"
    }


def container(release: Rendered) -> dict[str, Any]:
    """The predictor's container, of the runtime or of the Deployment."""
    for runtime in release.all("ServingRuntime"):
        return dict(runtime["spec"]["containers"][0])
    deployment = release.one("Deployment", "smollm2")
    return dict(deployment["spec"]["template"]["spec"]["containers"][0])


def pod(release: Rendered) -> dict[str, Any]:
    """What the pod has beside its container."""
    for service in release.all("InferenceService"):
        return dict(service["spec"]["predictor"])
    deployment = release.one("Deployment", "smollm2")
    return dict(deployment["spec"]["template"]["spec"])


def volumes(release: Rendered) -> list[dict[str, Any]]:
    """The volumes of the predictor's pods."""
    for runtime in release.all("ServingRuntime"):
        return list(runtime["spec"]["volumes"])
    return list(pod(release)["volumes"])


def annotations(release: Rendered) -> dict[str, str]:
    """The annotations of the predictor's pods."""
    for service in release.all("InferenceService"):
        return dict(service["spec"]["predictor"]["annotations"])
    template = release.one("Deployment", "smollm2")["spec"]["template"]
    return dict(template["metadata"]["annotations"])


@pytest.mark.parametrize(
    ("values", "made"),
    [
        (
            ON_KSERVE,
            {
                "InferenceService",
                "ServingRuntime",
                "Service",
                "PodDisruptionBudget",
                "NetworkPolicy",
            },
        ),
        (PLAIN, {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}),
        (KNATIVE, {"InferenceService", "ServingRuntime", "NetworkPolicy"}),
    ],
    ids=["Standard", "Deployment", "Knative"],
)
def test_objects(values: dict[str, Any], made: set[str]) -> None:
    """Each way of serving makes its own objects; Knative brings what it needs itself."""
    assert kinds(model(**values)) == made


def test_runtime_is_named() -> None:
    """The InferenceService names the runtime of its own, which no other one is given."""
    release = model(**ON_KSERVE)

    assert release.one("InferenceService", "smollm2")["spec"]["predictor"]["model"]["runtime"] == (
        "smollm2"
    )
    (model_format,) = release.one("ServingRuntime", "smollm2")["spec"]["supportedModelFormats"]
    assert model_format == {"name": "gguf", "autoSelect": False}


@pytest.mark.parametrize("name", ["", "kserve-llamacpp"])
def test_other_runtime(name: str) -> None:
    """With a runtime that exists already, the flags that values stand for go along."""
    runtime = {"create": False, "name": name}
    release = model(**ON_KSERVE, runtime=runtime, graceSeconds=300, args=["--n_ctx=2048"])

    assert not release.all("ServingRuntime")
    found = release.one("InferenceService", "smollm2")["spec"]["predictor"]["model"]
    assert found.get("runtime", "") == name
    flags = ["--drain_delay_seconds=5", "--grace_seconds=300", "--prefix_sharing=tenant"]
    assert found["args"] == [*flags, "--n_ctx=2048"]


@pytest.mark.parametrize("values", [ON_KSERVE, PLAIN], ids=["KServe", "Deployment"])
def test_arguments(values: dict[str, Any]) -> None:
    """The model is served under its key; own arguments come last, where they win."""
    arguments = container(model(**values, args=["--n_ctx=2048"]))["args"]

    assert arguments[0] == "--model_name=smollm2"
    assert arguments[-1] == "--n_ctx=2048"
    assert "--drain_delay_seconds=5" in arguments
    assert "--grace_seconds=30" in arguments


@pytest.mark.parametrize("values", [ON_KSERVE, PLAIN], ids=["KServe", "Deployment"])
def test_time_to_load(values: dict[str, Any]) -> None:
    """The startup probe waits as long as the model may take, the other probes do not wait."""
    found = container(model(**values, startupSeconds=3601))

    startup = found["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 3602
    assert startup["httpGet"]["path"] == "/v1/models/smollm2"
    assert found["readinessProbe"]["failureThreshold"] == 1
    assert found["livenessProbe"]["httpGet"]["path"] == "/"


@pytest.mark.parametrize("values", [ON_KSERVE, PLAIN], ids=["KServe", "Deployment"])
def test_time_to_end(values: dict[str, Any]) -> None:
    """Kubernetes waits for drain delay, grace period and 25 seconds."""
    found = pod(model(**values, drainDelaySeconds=10, graceSeconds=300))

    assert found["terminationGracePeriodSeconds"] == 335


def test_deployment_waits_for_the_model() -> None:
    """A rollout is not given up while the model may still be loading."""
    spec = model(**PLAIN, startupSeconds=3600).one("Deployment", "smollm2")["spec"]

    assert spec["progressDeadlineSeconds"] > 3600


@pytest.mark.parametrize(
    ("path", "directory"),
    [("", "/mnt/models"), ("smollm2", "/mnt/models/smollm2"), ("a/b.gguf", "/mnt/models/a/b.gguf")],
)
def test_claim(path: str, directory: str) -> None:
    """A Deployment reads its model from a place in the claim, and cannot write there."""
    release = model(kind="Deployment", volume={"claimName": "models", "path": path})

    assert f"--model_dir={directory}" in container(release)["args"]
    claim = {"claimName": "models", "readOnly": True}
    assert {"name": "models", "persistentVolumeClaim": claim} in pod(release)["volumes"]
    mount = {"name": "models", "mountPath": "/mnt/models", "readOnly": True}
    assert mount in container(release)["volumeMounts"]


@pytest.mark.parametrize("values", [ON_KSERVE, PLAIN], ids=["KServe", "Deployment"])
def test_service_on_the_pods(values: dict[str, Any]) -> None:
    """The proxy finds each pod by a headless Service, on the container's own port."""
    spec = model(**values).one("Service", "smollm2-pods")["spec"]

    assert spec["clusterIP"] == "None"
    (port,) = spec["ports"]
    assert (port["port"], port["targetPort"]) == (8080, 8080)


@pytest.mark.parametrize("values", [ON_KSERVE, PLAIN], ids=["KServe", "Deployment"])
def test_grpc(values: dict[str, Any]) -> None:
    """gRPC has a port of the container, of each Service, and of the policy; by default none."""
    for is_on in (False, True):
        release = model(**values, grpc={"enabled": is_on})
        found = container(release)
        services = [
            entry["spec"]["ports"]
            for entry in release.all("Service")
            if entry["metadata"]["name"].startswith("smollm2")
        ]
        (rule,) = release.one("NetworkPolicy", "smollm2")["spec"]["ingress"]

        assert ("--enable_grpc=true" in found["args"]) is is_on
        assert ("--grpc_port=8081" in found["args"]) is is_on
        assert (8081 in [port["containerPort"] for port in found["ports"]]) is is_on
        assert (8081 in [port["port"] for port in rule["ports"]]) is is_on
        grpc = [port for ports in services for port in ports if port["port"] == 8081]
        assert [port["appProtocol"] for port in grpc] == ["kubernetes.io/h2c"] * (
            len(services) if is_on else 0
        )


def test_grpc_with_another_runtime() -> None:
    """With a runtime that exists, the flags go along; its port is the runtime's part."""
    release = model(**ON_KSERVE, runtime={"create": False}, grpc={"enabled": True})

    found = release.one("InferenceService", "smollm2")["spec"]["predictor"]["model"]
    assert found["args"][-2:] == ["--enable_grpc=true", "--grpc_port=8081"]


def test_replicas_on_kserve() -> None:
    """Without an autoscaler KServe runs as many replicas as are asked for."""
    found = model(**ON_KSERVE, replicas=3).one("InferenceService", "smollm2")

    assert found["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "none"
    assert found["spec"]["predictor"]["minReplicas"] == 3


def test_autoscaling_on_kserve() -> None:
    """KServe makes the autoscaler, from these numbers."""
    scaling = {"enabled": True, "minReplicas": 2, "maxReplicas": 5}
    release = model(**ON_KSERVE, autoscaling=scaling)

    found = release.one("InferenceService", "smollm2")
    assert found["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "hpa"
    predictor = found["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 5)
    assert (predictor["scaleMetric"], predictor["scaleTarget"]) == ("cpu", 80)
    assert not release.all("HorizontalPodAutoscaler")


def test_autoscaling_in_knative_mode() -> None:
    """Knative scales with the requests in flight, and its mode has no other autoscaler."""
    found = model(**KNATIVE, autoscaling={"enabled": True, "targetConcurrency": 4})

    service = found.one("InferenceService", "smollm2")
    assert "serving.kserve.io/autoscalerClass" not in service["metadata"]["annotations"]
    predictor = service["spec"]["predictor"]
    assert (predictor["scaleMetric"], predictor["scaleTarget"]) == ("concurrency", 4)


def test_from_zero_in_knative_mode() -> None:
    """A model may go to zero where the proxy leaves it alone."""
    scaling = {"enabled": True, "minReplicas": 0}
    release = render(
        {
            "proxy": {"config": {"probe_interval_seconds": 0}},
            "models": {"smollm2": {**KNATIVE, "autoscaling": scaling}},
        }
    )

    predictor = release.one("InferenceService", "smollm2")["spec"]["predictor"]
    assert predictor["minReplicas"] == 0


def test_time_to_end_in_knative_mode() -> None:
    """Knative's timeout is a pod's time to end: 30 seconds of waiting, the drain, 25 to close."""
    release = model(**KNATIVE, timeoutSeconds=300, drainDelaySeconds=10)

    predictor = release.one("InferenceService", "smollm2")["spec"]["predictor"]
    assert predictor["timeout"] == 300
    assert "terminationGracePeriodSeconds" not in predictor
    (container,) = release.one("ServingRuntime", "smollm2")["spec"]["containers"]
    assert {"--drain_delay_seconds=10", "--grace_seconds=235"} <= set(container["args"])


def test_autoscaling_of_a_deployment() -> None:
    """A Deployment gets an autoscaler, which owns its replicas."""
    release = model(**PLAIN, autoscaling={"enabled": True})

    assert "replicas" not in release.one("Deployment", "smollm2")["spec"]
    spec = release.one("HorizontalPodAutoscaler", "smollm2")["spec"]
    assert spec["scaleTargetRef"]["name"] == "smollm2"


def test_no_version_reaches_kserves_pods() -> None:
    """An InferenceService's labels, which its pods get, stay the same from version to version."""
    labels = model(**ON_KSERVE).one("InferenceService", "smollm2")["metadata"]["labels"]

    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_default_for_all_models() -> None:
    """What `modelDefaults` says holds for each model that says nothing else."""
    release = render(
        {
            "proxy": {"model": "a"},
            "modelDefaults": {"graceSeconds": 60, "networkPolicy": {"enabled": False}},
            "models": {"a": ON_KSERVE, "b": {**ON_KSERVE, "graceSeconds": 90}},
        }
    )

    times = {
        entry["metadata"]["name"]: entry["spec"]["predictor"]["terminationGracePeriodSeconds"]
        for entry in release.all("InferenceService")
    }
    assert times == {"a": 90, "b": 120}
    assert not release.has("NetworkPolicy", "a")


def test_disabled_model() -> None:
    """A model that is not enabled has no objects."""
    assert kinds(model(**ON_KSERVE, enabled=False)) == set()


def test_monitor_counts_each_pod_once() -> None:
    """Prometheus scrapes through the headless Service, never through the one beside it, too."""
    release = model(**PLAIN, serviceMonitor={"enabled": True, "labels": {"release": "p"}})

    monitor = release.one("ServiceMonitor", "smollm2")
    assert monitor["metadata"]["labels"]["release"] == "p"
    selector = monitor["spec"]["selector"]["matchLabels"]
    other = release.one("Service", "smollm2")["metadata"]["labels"]
    assert not selector.items() <= other.items()


@pytest.mark.parametrize(
    ("values", "label"),
    [
        (ON_KSERVE, "networking.kserve.io/visibility"),
        (KNATIVE, "networking.knative.dev/visibility"),
    ],
    ids=["Standard", "Knative"],
)
def test_reached_from_inside_alone(values: dict[str, Any], label: str) -> None:
    """Neither KServe nor Knative makes a public URL for the predictor, unless it is asked for."""
    closed = model(**values).one("InferenceService", "smollm2")["metadata"]["labels"]
    opened = model(**values, clusterLocal=False).one("InferenceService", "smollm2")

    assert closed[label] == "cluster-local"
    assert not [name for name in opened["metadata"]["labels"] if name.endswith("/visibility")]


def test_policy_in_knative_mode() -> None:
    """Requests come through the queue-proxy, from Knative's own namespaces alone."""
    spec = model(**KNATIVE).one("NetworkPolicy", "smollm2")["spec"]

    assert spec["podSelector"]["matchLabels"] == {
        "serving.kserve.io/inferenceservice": "smollm2",
        "component": "predictor",
    }
    own, knative = spec["ingress"]
    assert [port["port"] for port in own["ports"]] == [8080]
    assert [port["port"] for port in knative["ports"]] == [8012, 8013, 8112, 9090]
    names = [
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for peer in knative["from"]
    ]
    assert names == ["knative-serving", "kourier-system"]


def test_policy() -> None:
    """The predictor, which knows no keys, is reached from its namespace and by Prometheus."""
    spec = model(**ON_KSERVE).one("NetworkPolicy", "smollm2")["spec"]

    (rule,) = spec["ingress"]
    assert {"podSelector": {}} in rule["from"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]


@pytest.mark.parametrize(
    "values", [ON_KSERVE, PLAIN, KNATIVE], ids=["Standard", "plain", "Knative"]
)
def test_prompts_that_tenants_share(values: dict[str, Any]) -> None:
    """Named prompts lie in a ConfigMap, which the predictor reads; other ones make new pods."""
    release = model(**values, sharedPrompts={"kind.txt": "You are kind."})
    other = model(**values, sharedPrompts={"kind.txt": "You are king."})

    assert release.one("ConfigMap", "smollm2-shared-prompts")["data"] == {
        "kind.txt": "You are kind."
    }
    place = "/etc/kserve-llamacpp/shared-prompts"
    found = container(release)
    assert f"--shared_prompts={place}" in found["args"]
    mount = {"name": "shared-prompts", "mountPath": place, "readOnly": True}
    assert mount in found["volumeMounts"]
    volume = {"name": "shared-prompts", "configMap": {"name": "smollm2-shared-prompts"}}
    assert volume in volumes(release)
    assert (
        annotations(release)["checksum/shared-prompts"]
        != (annotations(other)["checksum/shared-prompts"])
    )


@pytest.mark.parametrize("values", [ON_KSERVE, PLAIN], ids=["KServe", "plain"])
def test_no_prompts_are_shared_by_default(values: dict[str, Any]) -> None:
    """Without named prompts tenants share nothing, and nothing is mounted."""
    release = model(**values)

    assert "--prefix_sharing=tenant" in container(release)["args"]
    assert "shared-prompts" not in str(release.objects)


def test_a_runtime_that_exists_is_told_who_shares() -> None:
    """An InferenceService of another's runtime says itself which requests share prefixes."""
    release = model(**ON_KSERVE, runtime={"create": False}, prefixSharing="all")
    service = release.one("InferenceService", "smollm2")

    assert "--prefix_sharing=all" in service["spec"]["predictor"]["model"]["args"]
