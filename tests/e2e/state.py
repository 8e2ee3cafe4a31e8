"""What the cluster says of its objects."""

from __future__ import annotations

from typing import Any

from kubernetes import client


def inference_service(namespace: str, name: str) -> dict[str, Any]:
    """Return an InferenceService as the cluster has it."""
    found: dict[str, Any] = client.CustomObjectsApi().get_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", namespace, "inferenceservices", name
    )
    return found


def is_ready(namespace: str, name: str) -> bool:
    """Tell whether an InferenceService says that it is ready."""
    status = inference_service(namespace, name).get("status", {})
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions", [])}
    return conditions.get("Ready") == "True"


def address(namespace: str, name: str) -> str:
    """Return an InferenceService's own URL inside the cluster."""
    url: str = inference_service(namespace, name)["status"]["address"]["url"]
    return url


def predictor_selector(name: str) -> str:
    """Return the label selector of an InferenceService's pods."""
    return f"app=isvc.{name}-predictor"


def pods(namespace: str, selector: str = "") -> list[client.V1Pod]:
    """Return the pods that a label selector names, those that are being deleted too."""
    return list(client.CoreV1Api().list_namespaced_pod(namespace, label_selector=selector).items)


def ready_pods(namespace: str, selector: str) -> list[str]:
    """Return the names of the pods that are ready and stay."""
    return [
        pod.metadata.name
        for pod in pods(namespace, selector)
        if pod.metadata.deletion_timestamp is None
        and any(
            condition.type == "Ready" and condition.status == "True"
            for condition in pod.status.conditions or []
        )
    ]
