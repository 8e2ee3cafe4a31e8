"""KServe's Standard mode: the runtime chosen by format, the proxy in front, V1 inside."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kubernetes import client
from openai import OpenAI

from tests.e2e.cluster import wait_until
from tests.e2e.conftest import inference_service

HERE = Path(__file__).parent
_MESSAGES = [{"role": "user", "content": "What is a fox?"}]

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def openai_client(proxy_url: str) -> OpenAI:
    """OpenAI's own client; the first answer may be a moment away from the service's readiness."""

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"{proxy_url}/health/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    wait_until("the proxy ready from outside", 60, is_ready)
    return OpenAI(base_url=f"{proxy_url}/v1", api_key="unused", max_retries=0, timeout=120)


def test_service_becomes_ready(
    applied: dict[str, float], record_property: Callable[[str, object], None]
) -> None:
    """The manifests give a ready InferenceService and proxy, under the restricted profile."""
    for what, seconds in applied.items():
        record_property(f"{what} ready after seconds", round(seconds, 1))
        print(f"{what} ready after {seconds:.1f} s")


def test_runtime_is_chosen_by_format(namespace: str, applied: dict[str, float]) -> None:
    """The InferenceService names no runtime: its model's format leads to ours."""
    status = inference_service(namespace, "smollm2")["status"]

    assert isinstance(status, dict)
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


def test_v1_predict_inside_the_cluster(namespace: str, applied: dict[str, float]) -> None:
    """A pod gets V1 predictions at the InferenceService's own address."""
    status = inference_service(namespace, "smollm2")["status"]
    assert isinstance(status, dict)
    body = {"instances": ["Once upon a time"], "parameters": {"max_tokens": 8}}

    answer = json.loads(
        _post_inside(namespace, f"{status['address']['url']}/v1/models/smollm2:predict", body)
    )

    assert len(answer["predictions"]) == 1
    assert answer["predictions"][0]["usage"]["completion_tokens"] == 8


def _post_inside(namespace: str, url: str, body: object) -> str:
    core = client.CoreV1Api()
    pod = yaml.safe_load((HERE / "client-pod.yaml").read_text(encoding="utf-8"))
    pod["spec"]["containers"][0]["env"] = [
        {"name": "URL", "value": url},
        {"name": "BODY", "value": json.dumps(body)},
    ]
    core.create_namespaced_pod(namespace, pod)
    try:
        phase = wait_until(
            "the client pod's end",
            60,
            lambda: _end_phase(core.read_namespaced_pod("client", namespace)),
        )
        log: str = core.read_namespaced_pod_log("client", namespace)
        assert phase == "Succeeded", log
        return log
    finally:
        core.delete_namespaced_pod("client", namespace, grace_period_seconds=0)


def _end_phase(pod: client.V1Pod) -> str | None:
    phase = pod.status.phase
    return phase if phase in ("Succeeded", "Failed") else None
