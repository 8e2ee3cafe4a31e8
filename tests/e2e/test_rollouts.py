"""Pods go under streaming load, by deletion and by rolling updates: no request may fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kubernetes import client

from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.inside import StreamingLoad, streaming_load
from tests.e2e.state import pods, predictor_selector, ready_pods

HERE = Path(__file__).parent
_PREDICTOR = predictor_selector("smollm2")
_PROXY = "app.kubernetes.io/name=openai-proxy"
_ROLL_SECONDS = 300
# So many requests before anything is broken, and again when all is whole
_NUM_REQUESTS = 8

_KILL_ENGINE = """
import os, pathlib, signal
engines = [
    int(path.parent.name)
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
    if path.read_bytes().split(b"\\0")[1:3] == [b"-m", b"kserve_llamacpp.engine.worker"]
]
for engine in engines:
    os.kill(engine, signal.SIGKILL)
print("killed", len(engines))
"""

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def applied(cluster: Cluster, namespace: str, models: None) -> None:
    """Two predictors and two proxies, all ready."""
    cluster.kubectl("-n", namespace, "apply", "-k", f"{HERE}/two-replicas")
    for selector in (_PREDICTOR, _PROXY):
        _wait_for_new_pods(namespace, selector, ())


@pytest.mark.short
def test_predictors_are_rolled(
    cluster: Cluster, namespace: str, applied: None, record_property: Record
) -> None:
    """A rolling update of the InferenceService replaces both predictors; no request fails."""
    with streaming_load(cluster, namespace, "http://openai-proxy", "smollm2") as load:
        old = _begin(load, namespace, _PREDICTOR)
        _annotate(namespace, str(time.time()))
        seconds = _wait_for_new_pods(namespace, _PREDICTOR, old)
        _end(load, record_property, seconds)


def test_a_predictor_is_deleted(
    cluster: Cluster, namespace: str, applied: None, record_property: Record
) -> None:
    """A predictor's pod is deleted with its grace period and replaced; no request fails."""
    with streaming_load(cluster, namespace, "http://openai-proxy", "smollm2") as load:
        first, second = _begin(load, namespace, _PREDICTOR)
        cluster.kubectl("-n", namespace, "delete", "pod", first, "--wait=false")
        seconds = _wait_for_new_pods(namespace, _PREDICTOR, (first,))
        assert second in ready_pods(namespace, _PREDICTOR)
        _end(load, record_property, seconds)


def test_proxies_are_rolled(
    cluster: Cluster, namespace: str, applied: None, record_property: Record
) -> None:
    """A rolling update of the proxy's Deployment replaces both proxies; no request fails."""
    with streaming_load(cluster, namespace, "http://openai-proxy", "smollm2") as load:
        old = _begin(load, namespace, _PROXY)
        cluster.kubectl("-n", namespace, "rollout", "restart", "deployment/openai-proxy")
        seconds = _wait_for_new_pods(namespace, _PROXY, old)
        _end(load, record_property, seconds)


def test_the_only_engine_dies(
    cluster: Cluster, namespace: str, applied: None, record_property: Record
) -> None:
    """One predictor is left and its engine is killed: streams pause and go on, no request fails."""
    _set_replicas(namespace, 1)
    wait_until("one predictor", 120, lambda: len(pods(namespace, _PREDICTOR)) == 1)
    with streaming_load(cluster, namespace, "http://openai-proxy", "smollm2") as load:
        wait_until("the load's first answers", 120, lambda: load.num_done() >= _NUM_REQUESTS)
        (pod,) = ready_pods(namespace, _PREDICTOR)
        killed = cluster.kubectl("-n", namespace, "exec", pod, "--", "python", "-c", _KILL_ENGINE)
        assert killed.split() == ["killed", "1"]
        _end(load, record_property)
    (found,) = pods(namespace, _PREDICTOR)
    assert found.status.container_statuses[0].restart_count == 0


def _begin(load: StreamingLoad, namespace: str, selector: str) -> tuple[str, ...]:
    """Wait until the load runs; return the pods that serve it now."""
    wait_until("the load's first answers", 120, lambda: load.num_done() >= _NUM_REQUESTS)
    names = tuple(ready_pods(namespace, selector))
    assert len(names) == 2
    return names


def _end(load: StreamingLoad, record_property: Record, seconds: float | None = None) -> None:
    """Let the load run on for a while, and look at how it went."""
    wanted = load.num_done() + _NUM_REQUESTS
    wait_until("answers after all is whole", 120, lambda: load.num_done() >= wanted)
    report = load.stop()
    record_property("requests", report["requests"])
    record_property("failed", report["failed"])
    if seconds is not None:
        record_property("replaced after seconds", round(seconds, 1))
    assert report["failed"] == 0, "\n".join(report["failures"])


def _wait_for_new_pods(namespace: str, selector: str, old: tuple[str, ...]) -> float:
    """Wait until two pods are ready and none of the old ones is left; return the seconds."""
    started = time.monotonic()

    def is_whole() -> bool:
        names = {pod.metadata.name for pod in pods(namespace, selector)}
        return names.isdisjoint(old) and len(ready_pods(namespace, selector)) == len(names) == 2

    wait_until(f"two new pods with {selector}", _ROLL_SECONDS, is_whole)
    return time.monotonic() - started


def _annotate(namespace: str, value: str) -> None:
    """Change the predictor's pod template, as any change of the InferenceService does."""
    _patch_predictor(namespace, {"annotations": {"tests/rolled-at": value}})


def _set_replicas(namespace: str, number: int) -> None:
    _patch_predictor(namespace, {"minReplicas": number})


def _patch_predictor(namespace: str, predictor: dict[str, object]) -> None:
    client.CustomObjectsApi().patch_namespaced_custom_object(
        "serving.kserve.io",
        "v1beta1",
        namespace,
        "inferenceservices",
        "smollm2",
        {"spec": {"predictor": predictor}},
    )
