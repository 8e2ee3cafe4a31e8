"""The chart on a cluster: installed, tested, upgraded and gone again, by the commands it gives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
import yaml
from kubernetes import client

from tests.e2e import chart
from tests.e2e.chart import Release
from tests.e2e.cluster import Cluster
from tests.e2e.state import pods

_FORWARDED = "http://127.0.0.1:8000"
_SUCCEEDED = "Phase:          Succeeded"
# `everything` is there to be rendered: its models, nodes and secrets exist nowhere.
_EVERYTHING = f"{chart.CHART}/ci/everything-values.yaml"
_INSTALLED = ("default", "smollm2", "smollm2-deployment")


@pytest.fixture(scope="module", params=_INSTALLED)
def release(
    cluster: Cluster, namespace: str, models: None, request: pytest.FixtureRequest
) -> Iterator[Release]:
    """A release of each file of ci/; that nothing of it stays is checked at its end."""
    before = chart.objects(cluster, namespace)
    made = Release(cluster, namespace, "llm")
    try:
        made.apply("install", request.param)
        yield made
    finally:
        made.helm("uninstall", "llm", "--ignore-not-found")
    chart.wait_for_nothing_new(cluster, namespace, before)


def run_notes(release: Release) -> dict[str, str]:
    """Run each command of the NOTES, as written, and return what each printed.

    One that forwards a port runs while those after it do.
    """
    printed = {}
    commands = release.commands()
    forward = next(command for command in commands if "port-forward" in command)
    before, after = commands[: commands.index(forward)], commands[commands.index(forward) + 1 :]
    for command in before:
        printed[command] = chart.run(release.cluster, "bash", "-c", command)
    with chart.running(release.cluster, forward, _FORWARDED):
        for command in after:
            printed[command] = chart.run(release.cluster, "bash", "-c", command)
    return printed


def answer_of(printed: dict[str, str], command: str) -> dict[str, object]:
    (found,) = [text for line, text in printed.items() if line.startswith(command)]
    loaded = json.loads(found)
    assert isinstance(loaded, dict)
    return loaded


def proxy_pods(release: Release) -> set[str]:
    selector = f"app.kubernetes.io/component=proxy,app.kubernetes.io/instance={release.name}"
    return {
        pod.metadata.uid
        for pod in pods(release.namespace, selector)
        if pod.metadata.deletion_timestamp is None
    }


def test_commands_of_the_notes(
    release: Release, record_property: Callable[[str, object], None]
) -> None:
    """What the NOTES say works as written: `helm test` passes, and curl gets its answer.

    The defaults' NOTES add a model to the release; those of that upgrade hold as well.
    """
    started = time.monotonic()
    printed = run_notes(release)

    tested = next(
        text for line, text in printed.items() if line.startswith("helm") and " test " in line
    )
    assert tested.count(_SUCCEEDED) == 3
    if "curl http://127.0.0.1:8000/health" in printed:
        assert answer_of(printed, "curl")["status"] == "healthy"
        printed = run_notes(release)
    assert answer_of(printed, "curl")["choices"]
    record_property("NOTES done after seconds", round(time.monotonic() - started, 1))


def test_changed_setting_rolls_the_pods(release: Release) -> None:
    """An upgrade that changes a setting replaces the proxy's pods, another one does not."""
    before = proxy_pods(release)
    again = ("upgrade", release.name, chart.CHART, "--reuse-values", "--wait", "--timeout", "240s")

    release.helm(*again)
    assert proxy_pods(release) == before

    release.helm(*again, "--set", "proxy.config.log_level=warning")
    assert not proxy_pods(release) & before
    settings = client.CoreV1Api().read_namespaced_config_map(release.proxy, release.namespace)
    assert "log_level: warning" in settings.data["config.yaml"]
    assert release.helm("test", release.name).count(_SUCCEEDED) == 3


def test_everything_passes_a_server_side_dry_run(cluster: Cluster, namespace: str) -> None:
    """The API and KServe's webhooks take all that the chart makes, but kinds that are not here."""
    # A node port may be another's.
    given = ("-f", _EVERYTHING, "--set", "proxy.service.nodePort=null")
    rendered = Release(cluster, namespace, "everything").helm(
        "template", "everything", chart.CHART, "--kube-version", "1.34.0", *given
    )
    served = set(cluster.kubectl("api-versions").split())
    found = [entry for entry in yaml.safe_load_all(rendered) if entry["apiVersion"] in served]

    printed = cluster.kubectl(
        "apply", "--dry-run=server", "-f", "-", data=yaml.safe_dump_all(found).encode()
    )

    assert {entry["kind"] for entry in found} >= {"InferenceService", "Ingress", "NetworkPolicy"}
    assert printed.count("(server dry run)") == len(found)
