"""The chart's releases on a cluster, installed with a file of its ci/ and next to nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from tests.e2e.cluster import ROOT, Cluster, wait_until

CHART = "charts/kserve-llamacpp"
_CI = ROOT / CHART / "ci"
_SMALL = {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}
# What comes and goes by itself, and two that are views of other objects
_NOT_KEPT = ("events", "events.events.k8s.io", "pods.metrics.k8s.io", "leases.coordination.k8s.io")


@dataclass(frozen=True)
class Release:
    """A release of the chart."""

    cluster: Cluster
    namespace: str
    name: str

    @property
    def proxy(self) -> str:
        """The name of the proxy's objects."""
        return f"{self.name}-kserve-llamacpp-proxy"

    def helm(self, *arguments: str, data: str = "") -> str:
        """Run helm in the release's namespace and return what it prints."""
        return run(self.cluster, "helm", "-n", self.namespace, *arguments, data=data)

    def apply(self, command: str, ci: str, *arguments: str) -> None:
        """Install or upgrade with a file of ci/, and wait until all pods but models' are ready."""
        values = json.dumps(overrides(self.cluster, ci))
        files = ("-f", f"{CHART}/ci/{ci}-values.yaml", "-f", "-")
        waits = ("--wait", "--timeout", "240s")
        self.helm(command, self.name, CHART, *files, *waits, *arguments, data=values)

    def commands(self) -> list[str]:
        """Return the commands that the NOTES give, as they are written."""
        notes = self.helm("get", "notes", self.name)
        return [line[4:] for line in notes.splitlines() if line.startswith("    ")]


def overrides(cluster: Cluster, ci: str) -> dict[str, Any]:
    """Return what is changed of a file of ci/: the images' tags, and resources."""
    tags = {part: cluster.image(part).rpartition(":")[2] for part in ("proxy", "predictor")}
    given = yaml.safe_load((_CI / f"{ci}-values.yaml").read_text(encoding="utf-8"))
    proxy = {"image": {"tag": tags["proxy"]}, "resources": {"requests": {"cpu": "20m"}}}
    model = {"image": {"tag": tags["predictor"]}, "resources": _SMALL}
    models = {name: {"resources": _SMALL} for name in given.get("models", {})}
    return {"proxy": proxy, "modelDefaults": model, "models": models}


def run(cluster: Cluster, *command: str, data: str = "") -> str:
    """Run a command in the repository; its errors are the test's."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=dict(cluster.environ),
        input=data,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def running(cluster: Cluster, command: str, url: str) -> Iterator[None]:
    """Keep a command running that makes a URL answer, whatever it answers."""
    with subprocess.Popen(
        ["bash", "-c", command], cwd=ROOT, env=dict(cluster.environ), start_new_session=True
    ) as process:
        try:
            wait_until(f"{command}: {url}", 30, lambda: _is_there(url))
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def _is_there(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def objects(cluster: Cluster, namespace: str) -> set[str]:
    """Return the names of all objects in a namespace, of whatever kind."""
    listing = ("api-resources", "--verbs=list", "--namespaced", "--output=name")
    kinds = [kind for kind in cluster.kubectl(*listing).split() if kind not in _NOT_KEPT]
    found = cluster.kubectl("-n", namespace, "get", ",".join(kinds), "--output=name")
    return set(found.split())


def wait_for_nothing_new(cluster: Cluster, namespace: str, before: set[str]) -> None:
    """Wait until a namespace holds nothing that it did not hold before."""
    wait_until("nothing of the release left", 120, lambda: not objects(cluster, namespace) - before)
