"""KServe's Standard mode: the runtime chosen by format, the proxy in front, V1 inside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.e2e.cluster import Cluster, is_answering, wait_until
from tests.e2e.inside import request
from tests.e2e.state import address, inference_service, is_ready

HERE = Path(__file__).parent
_READY_SECONDS = 300
_MESSAGES = [{"role": "user", "content": "What is a fox?"}]

pytestmark = pytest.mark.short


@pytest.fixture(scope="module")
def applied(cluster: Cluster, namespace: str, models: None) -> dict[str, float]:
    """Runtime, InferenceService and proxy, all ready; the seconds that each took from apply."""
    started = time.monotonic()
    cluster.kubectl("-n", namespace, "apply", "-k", f"{HERE}/overlay")
    wait_until(
        "InferenceService smollm2 ready", _READY_SECONDS, lambda: is_ready(namespace, "smollm2")
    )
    service_seconds = time.monotonic() - started
    rollout = ("rollout", "status", "deployment/openai-proxy", "--timeout=120s")
    cluster.kubectl("-n", namespace, *rollout)
    return {"InferenceService": service_seconds, "proxy": time.monotonic() - started}


@pytest.fixture(scope="module")
def proxy_url(cluster: Cluster, namespace: str, applied: dict[str, float]) -> Iterator[str]:
    """Where the proxy answers from outside the cluster."""
    if cluster.node_port is None:
        with cluster.forward(namespace, "service/openai-proxy", 80) as url:
            yield url
    else:
        cluster.kubectl("-n", namespace, "apply", "-f", f"{HERE}/node-port.yaml")
        yield f"http://127.0.0.1:{cluster.node_port}"


@pytest.fixture
def openai_client(proxy_url: str) -> OpenAI:
    """OpenAI's own client; the first answer may be a moment away from the service's readiness."""
    wait_until("the proxy's answer outside", 60, lambda: is_answering(f"{proxy_url}/health/ready"))
    return OpenAI(base_url=f"{proxy_url}/v1", api_key="unused", max_retries=0, timeout=120)


def test_service_becomes_ready(
    applied: dict[str, float], record_property: Callable[[str, object], None]
) -> None:
    """The manifests give a ready InferenceService and proxy, under the restricted profile."""
    for what, seconds in applied.items():
        record_property(f"{what} ready after seconds", round(seconds, 1))


def test_runtime_is_chosen_by_format(namespace: str, applied: dict[str, float]) -> None:
    """The InferenceService names no runtime: its model's format leads to ours."""
    status = inference_service(namespace, "smollm2")["status"]

    assert status["servingRuntimeName"] == "kserve-llamacpp"


def test_chat_through_the_proxy(openai_client: OpenAI) -> None:
    """OpenAI's client gets an answer from outside the cluster."""
    answer = openai_client.chat.completions.create(
        model="smollm2", messages=_MESSAGES, max_tokens=16, temperature=0
    )

    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_stream_through_the_proxy(openai_client: OpenAI) -> None:
    """A stream arrives in pieces, and ends with a reason."""
    chunks = list(
        openai_client.chat.completions.create(
            model="smollm2", messages=_MESSAGES, max_tokens=16, temperature=0, stream=True
        )
    )

    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert len([text for text in texts if text]) > 4
    assert chunks[-1].choices[0].finish_reason == "length"


def test_chat_at_the_services_own_address(namespace: str, applied: dict[str, float]) -> None:
    """A pod gets OpenAI's answers at the InferenceService's own address."""
    body = {"model": "smollm2", "messages": _MESSAGES, "max_tokens": 8}

    answer = request(namespace, f"{address(namespace, 'smollm2')}/openai/v1/chat/completions", body)

    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 8


def test_v1_predict_inside_the_cluster(namespace: str, applied: dict[str, float]) -> None:
    """A pod gets V1 predictions at the InferenceService's own address."""
    body = {"instances": ["Once upon a time"], "parameters": {"max_tokens": 8}}

    answer = request(namespace, f"{address(namespace, 'smollm2')}/v1/models/smollm2:predict", body)

    assert len(answer["predictions"]) == 1
    assert answer["predictions"][0]["usage"]["completion_tokens"] == 8
