"""A predictor gets a second replica under load, and gives it back: KEDA by queue, HPA by CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kubernetes import client

from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.inside import streaming_load
from tests.e2e.state import address, is_ready, pods, predictor_selector, ready_pods

HERE = Path(__file__).parent
_MODEL = "smollm2"
_PODS = predictor_selector(_MODEL)
_PROMETHEUS = "http://prometheus.monitoring.svc:9090"  # as the manifests have it
_READY_SECONDS = 180
_UP_SECONDS = 150
_DOWN_SECONDS = 150  # the window, and as much as a pod takes to drain

Record = Callable[[str, object], None]


def test_keda_scales_by_the_queue(
    cluster: Cluster, namespace: str, models: None, record_property: Record
) -> None:
    """Requests that wait bring a second replica, an empty queue takes it away, and none fails."""
    cluster.needs("keda", "prometheus")
    with _applied(cluster, namespace, "keda"):
        wait_until("KEDA's HPA", 60, lambda: _autoscaler(namespace) is not None)

        _goes_up_and_down(cluster, namespace, record_property, reason="s0-prometheus")


def test_hpa_scales_by_cpu(
    cluster: Cluster, namespace: str, models: None, record_property: Record
) -> None:
    """Busy CPUs bring a second replica, idle ones take it away, and no request fails."""
    cluster.needs("metrics-server")
    with _applied(cluster, namespace, "hpa"):
        _goes_up_and_down(cluster, namespace, record_property, reason="cpu resource utilization")


def _goes_up_and_down(
    cluster: Cluster, namespace: str, record_property: Record, reason: str
) -> None:
    """Put load on until two replicas are ready and let it go; the autoscaler names its reason."""
    assert len(ready_pods(namespace, _PODS)) == 1
    url = address(namespace, _MODEL)
    with streaming_load(cluster, namespace, url, _MODEL, num_clients=6, max_seconds=240) as load:
        started = time.monotonic()
        wait_until("a second replica", _UP_SECONDS, lambda: len(ready_pods(namespace, _PODS)) == 2)
        record_property("two replicas after seconds", round(time.monotonic() - started, 1))
        assert reason in _reason(namespace)
        started = time.monotonic()
        report = load.stop()
    wait_until("one replica again", _DOWN_SECONDS, lambda: len(pods(namespace, _PODS)) == 1)
    record_property("one replica after seconds", round(time.monotonic() - started, 1))
    record_property("requests", report["requests"])

    assert report["failed"] == 0, report["failures"]
    assert len(ready_pods(namespace, _PODS)) == 1


@contextmanager
def _applied(cluster: Cluster, namespace: str, overlay: str) -> Iterator[None]:
    objects = cluster.kubectl("kustomize", f"{HERE}/{overlay}")
    if cluster.prometheus_url is not None:
        objects = objects.replace(_PROMETHEUS, cluster.prometheus_url)
    cluster.kubectl("-n", namespace, "apply", "-f", "-", data=objects.encode())
    try:
        wait_until(
            f"InferenceService {_MODEL} ready", _READY_SECONDS, lambda: is_ready(namespace, _MODEL)
        )
        yield
    finally:
        cluster.kubectl("-n", namespace, "delete", "-f", "-", data=objects.encode())
        wait_until("no predictor left", 120, lambda: not pods(namespace, _PODS))


def _autoscaler(namespace: str) -> client.V2HorizontalPodAutoscaler | None:
    found = client.AutoscalingV2Api().list_namespaced_horizontal_pod_autoscaler(namespace).items
    return found[0] if found else None


def _reason(namespace: str) -> str:
    """Return what the autoscaler says it counted by."""
    autoscaler = _autoscaler(namespace)
    assert autoscaler is not None
    conditions = autoscaler.status.conditions or []
    return " ".join(c.message for c in conditions if c.type == "ScalingActive")
