"""KServe downloads the model itself: its storage initializer, and a store that speaks HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.inside import request
from tests.e2e.state import address, is_ready, pods, predictor_selector

HERE = Path(__file__).parent
_READY_SECONDS = 300
_DOWNLOADS = ("clusterstoragecontainer", "default")
# As docs/kubernetes.md gives it: the restricted profile would not take KServe's container else.
_RESTRICTED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def restricted_downloads(cluster: Cluster) -> Iterator[None]:
    """KServe's download container as the restricted profile wants it; afterwards as it was."""
    found = json.loads(cluster.kubectl("get", *_DOWNLOADS, "--output=json"))
    before = found["spec"]["container"].get("securityContext")
    _secure(cluster, _RESTRICTED)
    try:
        yield
    finally:
        _secure(cluster, before)


def _secure(cluster: Cluster, context: dict[str, object] | None) -> None:
    patch = json.dumps({"spec": {"container": {"securityContext": context}}})
    cluster.kubectl("patch", *_DOWNLOADS, "--type=merge", f"--patch={patch}")


@pytest.fixture(scope="module")
def applied(cluster: Cluster, namespace: str, models: None, restricted_downloads: None) -> float:
    """The InferenceService with a model from the store; the seconds from apply to ready."""
    # A cluster that was given has KServe's own; the kit's has none.
    if cluster.up_command is not None:
        cluster.build(_image(cluster), HERE / "storage-initializer")
    cluster.kubectl("-n", namespace, "apply", "-f", f"{HERE}/storage/model-server.yaml")
    cluster.kubectl("-n", namespace, "wait", "pod/model-server", "--for=condition=Ready")
    started = time.monotonic()
    cluster.kubectl("-n", namespace, "apply", "-k", f"{HERE}/storage")
    wait_until("the InferenceService", _READY_SECONDS, lambda: is_ready(namespace, "smollm2"))
    return time.monotonic() - started


def _image(cluster: Cluster) -> str:
    """Return the image that this KServe starts for downloads."""
    return cluster.kubectl("get", *_DOWNLOADS, "--output=jsonpath={.spec.container.image}")


def test_model_is_downloaded(
    cluster: Cluster,
    namespace: str,
    applied: float,
    record_property: Callable[[str, object], None],
) -> None:
    """KServe's initializer fetched the file over HTTP, under the restricted profile."""
    record_property("ready after seconds", round(applied, 1))
    (pod,) = pods(namespace, predictor_selector("smollm2"))

    (initializer,) = pod.spec.init_containers
    log = cluster.kubectl("-n", namespace, "logs", pod.metadata.name, "-c", initializer.name)

    assert initializer.name == "storage-initializer"
    assert initializer.image == _image(cluster)
    assert "http://model-server/smollm2/" in log


def test_downloaded_model_answers(namespace: str, applied: float) -> None:
    """The downloaded model generates."""
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}

    answer = request(namespace, f"{address(namespace, 'smollm2')}/v1/chat/completions", body)

    assert answer["usage"]["completion_tokens"] > 0
