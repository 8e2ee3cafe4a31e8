"""Programs inside the cluster: one request, or streaming load, from a Job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.state import pods

HERE = Path(__file__).parent
_POST = """
import os, urllib.request
body = os.environ["BODY"].encode() or None
request = urllib.request.Request(os.environ["URL"], body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""


class Program:
    """A Job with one pod that runs a Python script; `name` is free again after `delete`."""

    def __init__(self, namespace: str, name: str, script: str, env: Mapping[str, str]) -> None:
        self.namespace = namespace
        self.name = name
        job = yaml.safe_load((HERE / "job.yaml").read_text(encoding="utf-8"))
        job["metadata"]["name"] = name
        container = job["spec"]["template"]["spec"]["containers"][0]
        container["args"] = [script]
        container["env"] = [{"name": key, "value": value} for key, value in env.items()]
        client.BatchV1Api().create_namespaced_job(namespace, job)

    def pod(self) -> client.V1Pod:
        """Return the Job's pod, once there is one."""
        selector = f"batch.kubernetes.io/job-name={self.name}"
        found = wait_until(
            f"the pod of job {self.name}", 60, lambda: pods(self.namespace, selector)
        )
        pod: client.V1Pod = found[0]
        return pod

    def output(self, seconds: float) -> str:
        """Wait for the program's end and return what it printed; a failure is the test's."""
        phase = wait_until(f"the end of job {self.name}", seconds, self._end_phase)
        log: str = client.CoreV1Api().read_namespaced_pod_log(
            self.pod().metadata.name, self.namespace
        )
        assert phase == "Succeeded", log
        return log

    def _end_phase(self) -> str | None:
        phase = self.pod().status.phase
        return phase if phase in ("Succeeded", "Failed") else None

    def delete(self) -> None:
        """Remove the Job and its pod."""
        client.BatchV1Api().delete_namespaced_job(
            self.name, self.namespace, propagation_policy="Foreground", grace_period_seconds=0
        )


def request(namespace: str, url: str, body: object | None = None) -> Any:
    """Send one request from a pod, GET without a body, else POST; return the JSON answer."""
    sent = "" if body is None else json.dumps(body)
    program = Program(namespace, "client", _POST, {"URL": url, "BODY": sent})
    try:
        return json.loads(program.output(180))
    finally:
        program.delete()
        wait_until("the client's end", 60, lambda: not _exists(namespace, "client"))


class StreamingLoad(Program):
    """Clients that stream one chat completion after another until they are stopped."""

    def __init__(
        self, cluster: Cluster, namespace: str, url: str, settings: Mapping[str, str]
    ) -> None:
        script = (HERE / "load.py").read_text(encoding="utf-8")
        super().__init__(namespace, "load", script, {"URL": url, **settings})
        self._cluster = cluster

    def num_done(self) -> int:
        """Return how many requests have ended so far."""
        name = self.pod().metadata.name
        log = client.CoreV1Api().read_namespaced_pod_log(name, self.namespace, tail_lines=1)
        return int(json.loads(log)["requests"]) if log.strip() else 0

    def stop(self) -> dict[str, Any]:
        """Let every client finish its request; return the counts, with `failures` as texts."""
        name = self.pod().metadata.name
        self._cluster.kubectl("-n", self.namespace, "exec", name, "--", "touch", "/tmp/stop")  # noqa: S108  # in the pod
        report: dict[str, Any] = json.loads(self.output(180).splitlines()[-1])
        return report


@contextmanager
def streaming_load(
    cluster: Cluster,
    namespace: str,
    url: str,
    model: str,
    *,
    num_clients: int = 4,
    max_tokens: int = 48,
    max_seconds: int = 600,
) -> Iterator[StreamingLoad]:
    """Put streaming load on a base URL from a Job, from the first finished answer on."""
    settings = {
        "MODEL": model,
        "NUM_CLIENTS": str(num_clients),
        "MAX_TOKENS": str(max_tokens),
        "MAX_SECONDS": str(max_seconds),
    }
    load = StreamingLoad(cluster, namespace, url, settings)
    try:
        wait_until("the load's first answer", 120, lambda: load.pod().status.phase == "Running")
        yield load
    finally:
        load.delete()
        wait_until("the load's end", 60, lambda: not _exists(namespace, "load"))


def _exists(namespace: str, job: str) -> bool:
    jobs = client.BatchV1Api().list_namespaced_job(namespace).items
    return any(found.metadata.name == job for found in jobs)
