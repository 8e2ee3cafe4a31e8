"""Autoscalers and monitors ask for metrics, ports and objects that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from kserve_llamacpp.metrics import EngineMetrics
from tests.manifests.test_kserve import ROOT, load, name_of

MONITORS = sorted((ROOT / "monitoring").rglob("p*.yaml"))


def patch_of(component: str) -> Any:
    """Return what a component does to an InferenceService: a part of one, or a list of steps."""
    kustomization = load(ROOT / component / "kustomization.yaml")
    return yaml.safe_load(kustomization["patches"][0]["patch"])


def predictor_metrics() -> set[str]:
    registry = CollectorRegistry()
    EngineMetrics("model", num_waiting=lambda: 0, num_running=lambda: 0, registry=registry)
    return {metric.name for metric in registry.collect()}


KEDA = patch_of("autoscaling/keda/component")
TRIGGERS = KEDA["spec"]["predictor"]["autoScaling"]["metrics"]
QUERIES = [trigger["external"]["metric"]["query"] for trigger in TRIGGERS]


@pytest.mark.parametrize("query", QUERIES)
def test_keda_asks_for_a_metric_of_the_predictor(query: str) -> None:
    """Each query sums a gauge of the predictor; of a misspelt one KEDA would only see zero."""
    match = re.fullmatch(r'sum\((vllm:\w+)\{model_name="model"\}\)', query)

    assert match is not None
    assert match[1] in predictor_metrics()


def test_keda_scales_by_queue_and_cache() -> None:
    """The queue and the use of the KV cache are among what KEDA looks at."""
    assert any("vllm:num_requests_waiting" in query for query in QUERIES)
    assert any("vllm:kv_cache_usage_perc" in query for query in QUERIES)


def test_keda_gets_thresholds_as_it_reads_them() -> None:
    """KServe passes on `value` alone, as the string that it is written as."""
    for trigger in TRIGGERS:
        target = trigger["external"]["target"]
        assert set(target) == {"type", "value"}
        assert target["type"] == "Value"
        assert float(target["value"]) > 0


def test_keda_is_switched_on() -> None:
    """The annotation makes KServe hand scaling to KEDA."""
    assert KEDA["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"


def test_hpa_is_the_only_one() -> None:
    """KServe makes no HPA beside ours, which scales the Deployment that KServe makes."""
    (patch,) = patch_of("autoscaling/hpa/component")
    autoscaler = load(ROOT / "autoscaling" / "hpa" / "component" / "horizontal-pod-autoscaler.yaml")

    assert patch["path"] == "/metadata/annotations/serving.kserve.io~1autoscalerClass"
    assert patch["value"] == "external"
    assert (
        autoscaler["spec"]["scaleTargetRef"]["name"]
        == f"{autoscaler['metadata']['name']}-predictor"
    )


@pytest.mark.parametrize("path", MONITORS, ids=name_of)
def test_monitor_names_a_port(path: Path) -> None:
    """A monitor scrapes a port that its pods or Services name so."""
    monitor = load(path)
    part = path.stem
    if monitor["kind"] == "PodMonitor":
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        places = {
            "predictor": ("runtime/serving-runtime.yaml", ("spec", "containers")),
            "proxy": ("proxy/deployment.yaml", ("spec", "template", "spec", "containers")),
        }
        found: Any = load(ROOT / "kserve" / places[part][0])
        for step in places[part][1]:
            found = found[step]
        ports = found[0]["ports"]
    else:
        (endpoint,) = monitor["spec"]["endpoints"]
        service = {"predictor": "smollm2/service.yaml", "proxy": "proxy/service.yaml"}[part]
        labels = load(ROOT / "kserve" / service)["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        ports = load(ROOT / "kserve" / service)["spec"]["ports"]

    assert endpoint["port"] in [port["name"] for port in ports]
    assert endpoint["path"] == "/metrics"
