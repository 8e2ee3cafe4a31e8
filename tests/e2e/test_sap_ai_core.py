"""SAP AI Core's template, rendered with parameters: one container, one port, all under /v1.

Standard mode shows what runs; Knative mode, which is SAP AI Core's, shows how it scales.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import yaml
from openai import APIStatusError, OpenAI

from tests.e2e import knative
from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.state import pods
from tests.manifests import sap_ai_core

_NAME = "sap"
_MODEL = "smollm2"
_SCALE_UP_SECONDS = 180
_NUM_CLIENTS = 4
_NUM_TOKENS = 64


@contextmanager
def deployed(
    cluster: Cluster, namespace: str, name: str, mode: str, **parameters: str
) -> Iterator[None]:
    """Apply the template, rendered with the example configuration, and wait for the service.

    Set are the mode, and the resources, which SAP AI Core takes from the resource plan.
    """
    image = {"image": cluster.image("all-in-one")}
    given = {**sap_ai_core.bindings(), **image, **parameters}
    artifacts = {"model": f"pvc://models/{_MODEL}"}
    service = sap_ai_core.render(sap_ai_core.load(), name, given, artifacts)
    service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = mode
    service["spec"]["predictor"]["containers"][0]["resources"] = {
        "requests": {"cpu": "100m", "memory": "384Mi"},
        "limits": {"cpu": "2", "memory": "1Gi"},
    }
    cluster.kubectl("-n", namespace, "apply", "-f", "-", data=yaml.safe_dump(service).encode())
    try:
        knative.wait_until_ready(namespace, name)
        yield
    finally:
        cluster.kubectl("-n", namespace, "delete", "inferenceservice", name, "--wait=false")


@pytest.fixture(scope="module")
def standard(cluster: Cluster, namespace: str, models: None) -> Iterator[float]:
    """The service in Standard mode; the seconds from apply to ready."""
    # SAP AI Core makes a Secret of the body of a request.
    secret = {"apiVersion": "v1", "kind": "Secret"}
    body = sap_ai_core.request("generic-secret")
    secret |= {"metadata": {"name": body["name"]}, "data": body["data"]}
    cluster.kubectl("-n", namespace, "apply", "-f", "-", data=yaml.safe_dump(secret).encode())
    started = time.monotonic()
    with deployed(cluster, namespace, _NAME, "Standard"):
        yield time.monotonic() - started


@pytest.fixture(scope="module")
def url(cluster: Cluster, namespace: str, standard: float) -> Iterator[str]:
    """The one port, from outside the cluster."""
    with cluster.forward(namespace, f"service/{_NAME}-predictor", 80) as forwarded:
        yield forwarded


@pytest.fixture
def openai_client(url: str) -> OpenAI:
    """OpenAI's own client, at the one port."""
    return OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120)


def run_in_pod(cluster: Cluster, namespace: str, script: str) -> str:
    """Run a Python script in the service's container; return what it prints."""
    (pod,) = pods(namespace, f"serving.kserve.io/inferenceservice={_NAME}")
    command = ("exec", pod.metadata.name, "-c", "kserve-container", "--", "python", "-c", script)
    return cluster.kubectl("-n", namespace, *command)


@pytest.mark.short
def test_service_becomes_ready(
    standard: float, record_property: Callable[[str, object], None]
) -> None:
    """What the template renders to is admitted under the restricted profile, and gets ready."""
    record_property("ready after seconds", round(standard, 1))


@pytest.mark.short
def test_runs_as_nobody(cluster: Cluster, namespace: str, standard: float) -> None:
    """Every process in the container runs as 65534:65534, and without privileges."""
    script = (
        "import pathlib, re\n"
        "for status in pathlib.Path('/proc').glob('[0-9]*/status'):\n"
        "    found = dict(re.findall(r'^(\\w+):\\s(.*)$', status.read_text(), re.M))\n"
        "    print(found['Uid'].split(), found['Gid'].split(), found['CapEff'], "
        "found['NoNewPrivs'], found['Seccomp'])\n"
    )
    nobody = ["65534"] * 4

    lines = run_in_pod(cluster, namespace, script).splitlines()

    assert len(lines) > 3  # proxy, predictor, engine, and the script itself
    assert set(lines) == {f"{nobody} {nobody} 0000000000000000 1 2"}


@pytest.mark.short
def test_one_port(cluster: Cluster, namespace: str, standard: float) -> None:
    """The proxy's port is the only one that is reached from outside the container."""
    script = (
        "for name in ('tcp', 'tcp6'):\n"
        "    for line in open(f'/proc/net/{name}').read().splitlines()[1:]:\n"
        "        host, _, port = line.split()[1].partition(':')\n"
        "        if line.split()[3] == '0A' and host != '0100007F':\n"
        "            print(int(port, 16))\n"
    )

    assert run_in_pod(cluster, namespace, script).split() == ["8000"]


@pytest.mark.short
@pytest.mark.parametrize("path", ["/v1/health", "/v1/health/ready", "/v1/models", "/v1/metrics"])
def test_paths_under_v1(url: str, path: str) -> None:
    """What an operator asks is there under /v1, which is all that SAP AI Core lets through."""
    with urllib.request.urlopen(f"{url}{path}", timeout=30) as found:
        assert found.status == 200


@pytest.mark.short
def test_models(openai_client: OpenAI) -> None:
    """The model has the name that the parameter gives it."""
    assert [model.id for model in openai_client.models.list()] == [_MODEL]


@pytest.mark.short
def test_chat(openai_client: OpenAI) -> None:
    """OpenAI's client gets an answer."""
    assert knative.answer(openai_client, _MODEL, 16) == 16


@pytest.mark.short
def test_stream(openai_client: OpenAI) -> None:
    """A stream arrives in pieces, and ends with a reason."""
    chunks = list(
        openai_client.chat.completions.create(
            model=_MODEL, messages=knative.MESSAGES, max_tokens=16, temperature=0, stream=True
        )
    )

    assert len(chunks) > 4
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.short
def test_settings_from_the_generic_secret(openai_client: OpenAI) -> None:
    """The example secret's limit on bodies holds: 1 MiB, not the proxy's default of 8."""
    with pytest.raises(APIStatusError) as refused:
        openai_client.completions.create(model=_MODEL, prompt="x" * (1 << 20))

    assert refused.value.status_code == 413


def test_concurrency_target_adds_replicas(
    cluster: Cluster,
    namespace: str,
    models: None,
    record_property: Callable[[str, object], None],
) -> None:
    """In Knative mode, a concurrency target of 1 makes more of one replica; all answers come."""
    knative.need(cluster)
    scaling = {"minReplicas": "1", "maxReplicas": "3", "scalingWindow": "10s"}
    with deployed(cluster, namespace, "sap-many", "Knative", concurrencyTarget="1", **scaling):
        client = knative.openai_client(cluster, namespace, "sap-many")
        assert knative.num_ready(namespace, "sap-many") == 1
        is_over = threading.Event()

        def ask() -> list[int]:
            counts = []
            while not is_over.is_set():
                counts.append(knative.answer(client, _MODEL, _NUM_TOKENS))
            return counts

        started = time.monotonic()
        with ThreadPoolExecutor(_NUM_CLIENTS) as pool:
            asked = [pool.submit(ask) for _ in range(_NUM_CLIENTS)]
            try:
                wait_until(
                    "a second replica",
                    _SCALE_UP_SECONDS,
                    lambda: knative.num_ready(namespace, "sap-many") > 1,
                )
                record_property("more replicas after seconds", round(time.monotonic() - started, 1))
            finally:
                is_over.set()
            counts = [count for future in asked for count in future.result()]
        record_property("answers", len(counts))

    assert set(counts) == {_NUM_TOKENS}


def test_first_answer_from_zero(
    cluster: Cluster,
    namespace: str,
    models: None,
    record_property: Callable[[str, object], None],
) -> None:
    """With minReplicas 0 an idle service has no pod, and its next request is answered."""
    knative.need(cluster)
    scaling = {"minReplicas": "0", "scalingWindow": "10s", "scaleToZeroRetention": "0s"}
    with deployed(cluster, namespace, "sap-zero", "Knative", **scaling):
        client = knative.openai_client(cluster, namespace, "sap-zero")
        started = time.monotonic()
        knative.wait_for_zero(namespace, "sap-zero")
        record_property("no pod after seconds", round(time.monotonic() - started, 1))

        started = time.monotonic()
        num_tokens = knative.answer(client, _MODEL, 8)
        record_property("first answer after seconds", round(time.monotonic() - started, 1))

    assert num_tokens == 8
