"""Knative's side of the tests: requests through its ingress, and the pods of a service."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from openai import OpenAI

from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.state import inference_service, is_ready, pods, ready_pods

READY_SECONDS = 300
_GONE_SECONDS = 300
MESSAGES = [{"role": "user", "content": "What is a fox?"}]


def need(cluster: Cluster) -> None:
    """Install Knative, or skip the test where there is none or no way to its ingress."""
    cluster.needs("knative")
    if cluster.knative_url is None:
        pytest.skip("E2E_KNATIVE is not set: give the URL of Knative's ingress, as seen from here")


def openai_client(cluster: Cluster, namespace: str, name: str) -> OpenAI:
    """Return a client of an InferenceService: the ingress tells services by the Host header."""
    host = urlsplit(inference_service(namespace, name)["status"]["url"]).netloc
    return OpenAI(
        base_url=f"{cluster.knative_url}/v1",
        api_key="unused",
        default_headers={"Host": host},
        max_retries=0,
        timeout=300,
    )


def answer(client: OpenAI, model: str, max_tokens: int) -> int:
    """Ask for a chat completion of just so many tokens; return how many came."""
    completion = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=max_tokens, extra_body={"ignore_eos": True}
    )
    assert completion.usage is not None
    return completion.usage.completion_tokens


def wait_until_ready(namespace: str, name: str) -> None:
    """Wait for an InferenceService."""
    what = f"InferenceService {name} ready"
    wait_until(what, READY_SECONDS, lambda: is_ready(namespace, name))


def num_ready(namespace: str, name: str) -> int:
    """Return how many of an InferenceService's pods are ready."""
    return len(ready_pods(namespace, _selector(name)))


def wait_for_zero(namespace: str, name: str) -> None:
    """Wait until an InferenceService has no pod, not even one that ends."""
    what = f"no pod of {name}"
    wait_until(what, _GONE_SECONDS, lambda: not pods(namespace, _selector(name)))


def _selector(name: str) -> str:
    return f"serving.kserve.io/inferenceservice={name}"
