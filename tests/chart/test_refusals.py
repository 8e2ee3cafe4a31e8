"""Values that cannot work are refused with a sentence that names the value and how to mend it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import HelmFailed, render

A = {"storageUri": "pvc://models/a"}
PLAIN = {"kind": "Deployment", "volume": {"claimName": "models"}}


def proxy(**values: Any) -> dict[str, Any]:
    return {"proxy": values}


def model(**values: Any) -> dict[str, Any]:
    return {"models": {"a": values}}


SENTENCES = [
    (proxy(enabled=False), "nothing would be installed"),
    ({"models": {"a": A, "b": A}}, "several models (a, b), and the proxy's requests go to one"),
    ({"models": {"a": A}, **proxy(model="c")}, 'proxy.model is "c", which is none of'),
    (proxy(model="c"), "(there are none)"),
    ({"models": {"a": {**A, "enabled": False}}, **proxy(model="a")}, 'proxy.model is "a"'),
    (
        {"models": {"a": A}, **proxy(model="a", upstreamUrl="http://b")},
        "proxy.model and proxy.upstreamUrl are both set",
    ),
    (
        proxy(terminationGracePeriodSeconds=35),
        (
            "proxy.terminationGracePeriodSeconds is 35, but proxy.config.drain_delay_seconds and "
            "grace_seconds take 35 together: raise it"
        ),
    ),
    (
        proxy(terminationGracePeriodSeconds=60, config={"grace_seconds": 300}),
        "take 305 together",
    ),
    (
        proxy(autoscaling={"enabled": True, "minReplicas": 5, "maxReplicas": 4}),
        "proxy.autoscaling.minReplicas is 5 and maxReplicas 4",
    ),
    (
        proxy(autoscaling={"enabled": True, "targetCPUUtilizationPercentage": None}),
        "proxy.autoscaling has nothing to scale by",
    ),
    (
        proxy(env=[{"name": "OPENAI_PROXY_GRACE_SECONDS", "value": "90"}]),
        "proxy.env has OPENAI_PROXY_GRACE_SECONDS, which the chart has to know: use proxy.config",
    ),
    (proxy(ingress={"enabled": True}), "proxy.ingress.hosts is empty"),
    (proxy(httpRoute={"enabled": True}), "proxy.httpRoute.parentRefs is empty"),
    (proxy(service={"nodePort": 30080}), "set the type to NodePort"),
    (
        proxy(podDisruptionBudget={"minAvailable": 1}),
        "proxy.podDisruptionBudget needs one of minAvailable and maxUnavailable",
    ),
    (
        proxy(podDisruptionBudget={"maxUnavailable": None}),
        "proxy.podDisruptionBudget needs one of",
    ),
    (model(), "models.a.storageUri is empty"),
    (model(kind="Deployment"), "models.a.volume.claimName is empty"),
    (model(**PLAIN, **A), "models.a.storageUri is for kind InferenceService"),
    (
        model(**A, volume={"claimName": "m", "path": "x"}),
        "models.a.volume is for kind Deployment; an InferenceService takes storageUri: pvc://m/x",
    ),
    (model(**PLAIN, deploymentMode="Knative"), "models.a.deploymentMode is for kind"),
    (model(**A, runtime={"name": "r"}), "set models.a.runtime.create to false"),
    (
        model(**A, terminationGracePeriodSeconds=20),
        (
            "models.a.terminationGracePeriodSeconds is 20, but models.a.drainDelaySeconds and "
            "graceSeconds take 35 together"
        ),
    ),
    (model(**A, replicas=0), "set models.a.enabled to false"),
    (
        model(**A, autoscaling={"enabled": True, "minReplicas": 5}),
        "models.a.autoscaling.minReplicas is 5 and maxReplicas 4",
    ),
    (
        model(**A, autoscaling={"enabled": True, "minReplicas": 0}),
        "only Knative mode starts a model again",
    ),
    (
        model(**A, deploymentMode="Knative", autoscaling={"enabled": True, "minReplicas": 0}),
        "the proxy looks at its model every 2 s, which keeps a pod running",
    ),
    (
        {"commonLabels": {"app.kubernetes.io/name": "mine"}},
        "commonLabels has app.kubernetes.io/name, which the chart sets itself",
    ),
    (
        model(**A, podLabels={"app.kubernetes.io/instance": "mine"}),
        "models.a.podLabels has app.kubernetes.io/instance",
    ),
    (proxy(podLabels={"helm.sh/chart": "mine"}), "proxy.podLabels has helm.sh/chart"),
    (
        proxy(podAnnotations={"checksum/config": "1"}),
        "proxy.podAnnotations has checksum/config",
    ),
    (
        {"proxy": {"model": "a"}, "models": {"a": PLAIN, "a-pods": PLAIN}},
        "models.a-pods has the name of the Service on the pods of models.a",
    ),
    (
        proxy(config={"probe_interval_seconds": 0}),
        "proxy.config.probe_interval_seconds is 0, but there is no model",
    ),
    (
        model(**A, deploymentMode="Knative", terminationGracePeriodSeconds=700),
        "models.a.terminationGracePeriodSeconds is not for Knative mode",
    ),
    (model(**A, podDisruptionBudget={"minAvailable": 1}), "models.a.podDisruptionBudget needs"),
    (model(**A, args=["--grace_seconds=1"]), "use graceSeconds instead"),
    (model(**A, args=["--model_name=b"]), "use the model's key instead"),
    (model(**A, args=["--prefix_sharing=all"]), "use prefixSharing instead"),
    (model(**A, args=["--shared_prompts=/a"]), "use sharedPrompts instead"),
    (
        model(**A, sharedPrompts={"a": "b"}, runtime={"create": False}),
        "sharedPrompts needs a volume in the runtime",
    ),
    (model(**A, prefixSharing="user"), "/models/a/prefixSharing"),
    (model(**A, sharedPrompts={"a": " "}), "/models/a/sharedPrompts/a"),
    (model(**A, sharedPrompts={".a": "b"}), "/models/a/sharedPrompts"),
    (model(**A, args=["--http_port=9"]), "which probes and Services rely on"),
    (model(**A, args=["--enable_grpc=true"]), "use grpc.enabled instead"),
    (model(**A, args=["--ssl_certfile=a"]), "use tls.secretName instead"),
    (model(**A, tls={"secretName": "a"}), "set proxy.config.upstream_tls"),
    (
        model(**A, runtime={"create": False}, tls={"secretName": "a"}),
        "models.a.tls.secretName needs a runtime that mounts it",
    ),
    (
        model(**A, deploymentMode="Knative", tls={"secretName": "a"}),
        "models.a.tls.secretName is not for Knative mode",
    ),
    (
        model(**A, deploymentMode="Knative", grpc={"enabled": True}),
        "models.a.grpc.enabled is not for Knative mode",
    ),
    (
        {"fullnameOverride": "a", "models": {"a-proxy": A}},
        "models.a-proxy has the proxy's own name",
    ),
]
SCHEMA = [
    (proxy(upstreamURL="http://a"), "'upstreamURL' not allowed"),
    (proxy(upstreamUrl="a:8080"), "/proxy/upstreamUrl"),
    (proxy(replicas="2"), "/proxy/replicas"),
    (proxy(image={"digest": "sha256:12"}), "/proxy/image/digest"),
    (proxy(config={"grace_period": 3}), "'grace_period' not allowed"),
    (proxy(config={"upstream_url": "http://a"}), "'upstream_url' not allowed"),
    (proxy(config={"grace_seconds": None}), "missing property 'grace_seconds'"),
    (proxy(service={"port": 70000}), "/proxy/service/port"),
    (model(**A, kind="Pod"), "/models/a/kind"),
    (model(**A, resources={"request": {}}), "'request' not allowed"),
    (model(**A, args=["n_ctx"]), "/models/a/args/0"),
    (model(storageUri="models/a"), "/models/a/storageUri"),
    (model(kind="Deployment", volume={"claimName": "m", "path": "/a"}), "/models/a/volume/path"),
    ({"models": {"SmolLM2": A}}, "'SmolLM2' does not match pattern"),
    ({"modelDefaults": {"gracePeriod": 3}}, "'gracePeriod' not allowed"),
]


@pytest.mark.parametrize(("values", "sentence"), SENTENCES, ids=[text for _, text in SENTENCES])
def test_contradiction(values: dict[str, Any], sentence: str) -> None:
    """Values that contradict each other are told in a sentence."""
    with pytest.raises(HelmFailed) as refusal:
        render(values)

    assert sentence in str(refusal.value)


@pytest.mark.parametrize(("values", "place"), SCHEMA, ids=[text for _, text in SCHEMA])
def test_wrong_value(values: dict[str, Any], place: str) -> None:
    """Wrong names and types are refused by the schema, with their place."""
    with pytest.raises(HelmFailed) as refusal:
        render(values)

    assert "values don't meet the specifications of the schema" in str(refusal.value)
    assert place in str(refusal.value)
