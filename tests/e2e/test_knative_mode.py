"""KServe's Knative mode: runtime, model and proxy from the same bases, down to no pod and back."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kubernetes import client
from openai import OpenAI

from tests.e2e import knative
from tests.e2e.cluster import Cluster
from tests.e2e.inside import request
from tests.e2e.state import address, inference_service, ready_pods

HERE = Path(__file__).parent
_NAME = "smollm2"
_SELECTOR = f"serving.kserve.io/inferenceservice={_NAME}"
# Knative's own drain (30), the predictor's drain delay (5) and its default grace (30) are over.
_LONG_SECONDS = 70
_LONG_TOKENS = 8000


@pytest.fixture(scope="module")
def applied(cluster: Cluster, namespace: str, models: None) -> float:
    """Runtime, InferenceService and proxy, all ready; the seconds until the service was."""
    knative.need(cluster)
    started = time.monotonic()
    cluster.kubectl("-n", namespace, "apply", "-k", f"{HERE}/scale-to-zero")
    knative.wait_until_ready(namespace, _NAME)
    seconds = time.monotonic() - started
    rollout = ("rollout", "status", "deployment/openai-proxy", "--timeout=120s")
    cluster.kubectl("-n", namespace, *rollout)
    return seconds


@pytest.fixture
def proxy_client(cluster: Cluster, namespace: str, applied: float) -> Iterator[OpenAI]:
    """OpenAI's own client, at the proxy."""
    with cluster.forward(namespace, "service/openai-proxy", 80) as url:
        yield OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=300)


def test_service_becomes_ready(
    applied: float, record_property: Callable[[str, object], None]
) -> None:
    """Knative takes the runtime with its probes and volumes, under the restricted profile."""
    record_property("ready after seconds", round(applied, 1))


def test_pod_has_the_time_of_a_request_to_drain(namespace: str, applied: float) -> None:
    """The timeout of requests is also the pod's grace period, so that they can end."""
    timeout = inference_service(namespace, _NAME)["spec"]["predictor"]["timeout"]
    (deployment,) = (
        client.AppsV1Api().list_namespaced_deployment(namespace, label_selector=_SELECTOR).items
    )

    assert deployment.spec.template.spec.termination_grace_period_seconds == timeout


def test_chat_at_the_ingress(cluster: Cluster, namespace: str, applied: float) -> None:
    """OpenAI's client gets an answer at Knative's ingress, by the host of status.url."""
    openai_client = knative.openai_client(cluster, namespace, _NAME)

    assert knative.answer(openai_client, _NAME, 16) == 16


def test_v1_predict_at_the_ingress(cluster: Cluster, namespace: str, applied: float) -> None:
    """KServe's own protocol is answered there, too."""
    host = urlsplit(inference_service(namespace, _NAME)["status"]["url"]).netloc
    asked = urllib.request.Request(
        f"{cluster.knative_url}/v1/models/{_NAME}:predict",
        json.dumps({"instances": ["Once upon a time"], "parameters": {"max_tokens": 8}}).encode(),
        {"Host": host, "Content-Type": "application/json"},
    )

    with urllib.request.urlopen(asked, timeout=300) as answer:
        (prediction,) = json.load(answer)["predictions"]

    assert prediction["usage"]["completion_tokens"] == 8


def test_chat_at_the_services_own_address(namespace: str, applied: float) -> None:
    """A pod gets OpenAI's answers at the InferenceService's own address."""
    body = {"model": _NAME, "messages": knative.MESSAGES, "max_tokens": 8}

    answer = request(namespace, f"{address(namespace, _NAME)}/openai/v1/chat/completions", body)

    assert answer["choices"][0]["message"]["content"]


def test_stream_outlives_its_pods_deletion(
    cluster: Cluster, namespace: str, applied: float
) -> None:
    """A pod that is deleted under a stream lets it run on for long, up to its own end."""
    openai_client = knative.openai_client(cluster, namespace, _NAME)
    stream = openai_client.chat.completions.create(
        model=_NAME,
        messages=knative.MESSAGES,
        max_tokens=_LONG_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = [next(stream)]
    (pod,) = ready_pods(namespace, _SELECTOR)
    started = time.monotonic()
    cluster.kubectl("-n", namespace, "delete", "pod", pod, "--wait=false")

    with stream:
        for chunk in stream:
            chunks.append(chunk)
            if time.monotonic() - started > _LONG_SECONDS:
                break

    is_complete = chunks[-1].choices[0].finish_reason == "length"
    assert is_complete or time.monotonic() - started > _LONG_SECONDS


def test_chat_through_the_proxy_from_zero(
    namespace: str, proxy_client: OpenAI, record_property: Callable[[str, object], None]
) -> None:
    """The proxy leaves the predictor asleep, stays ready, and its next request wakes it."""
    started = time.monotonic()
    knative.wait_for_zero(namespace, _NAME)
    record_property("no pod after seconds", round(time.monotonic() - started, 1))
    started = time.monotonic()

    num_tokens = knative.answer(proxy_client, _NAME, 8)

    record_property("first answer after seconds", round(time.monotonic() - started, 1))
    assert num_tokens == 8
