"""The proxy as transformer container, in the predictor's own pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.inside import request
from tests.e2e.state import address, is_ready, predictor_selector, ready_pods

HERE = Path(__file__).parent
_READY_SECONDS = 180


@pytest.fixture(scope="module", autouse=True)
def _applied(cluster: Cluster, namespace: str, models: None) -> None:
    cluster.kubectl("-n", namespace, "apply", "-k", f"{HERE}/transformer")
    wait_until(
        "InferenceService smollm2 ready", _READY_SECONDS, lambda: is_ready(namespace, "smollm2")
    )


def test_address_leads_to_the_proxy(namespace: str) -> None:
    """At the InferenceService's own address the proxy answers: the predictor has no such path."""
    health = request(namespace, f"{address(namespace, 'smollm2')}/v1/health/ready")

    assert health["status"] == "ok"


def test_chat_at_the_services_own_address(namespace: str) -> None:
    """A pod gets an OpenAI chat completion, with nothing but the InferenceService applied."""
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "What is a fox?"}],
        "max_tokens": 8,
    }

    answer = request(namespace, f"{address(namespace, 'smollm2')}/v1/chat/completions", body)

    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] == 8


def test_one_pod(namespace: str) -> None:
    """Predictor and proxy share a pod."""
    assert len(ready_pods(namespace, predictor_selector("smollm2"))) == 1
