"""What the tests on a cluster share: the cluster, a namespace for each module, the model in it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kubernetes import config

from tests.e2e.cluster import Cluster, open_cluster, wait_until
from tests.e2e.state import pods

HERE = Path(__file__).parent
# The first test of all builds the images, llama.cpp among them.
_TIMEOUT_SECONDS = 2400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests on a cluster the time that they need."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT_SECONDS))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each test took and measured, as a table."""
    terminalreporter.section("on the cluster")
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if outcome == "passed" and report.when != "call":
                continue
            name = report.nodeid.removeprefix("tests/e2e/")
            measured = ", ".join(f"{key}: {value}" for key, value in report.user_properties)
            terminalreporter.write_line(
                f"{outcome:8}{report.duration:7.1f} s  {name}"
                + (f"  [{measured}]" if measured else "")
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what the cluster knows of the test's namespace, before it is gone."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    if report.failed and {"cluster", "namespace"} <= arguments.keys():
        report.sections.append(
            ("the namespace", arguments["cluster"].describe(arguments["namespace"]))
        )
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with KServe that holds the images of predictor and proxy."""
    with open_cluster(os.environ) as opened:
        for target in ("predictor", "proxy"):
            opened.image(target)
        config.load_kube_config(opened.environ["KUBECONFIG"])
        yield opened


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test module's own, which takes only pods of the restricted profile."""
    module = request.module.__name__.rpartition(".")[2]
    with _namespace(cluster, "e2e-" + module.removeprefix("test_").replace("_", "-")) as name:
        profile = "pod-security.kubernetes.io/enforce=restricted"
        cluster.kubectl("label", "namespace", name, profile)
        yield name


@pytest.fixture(scope="module")
def models(cluster: Cluster, namespace: str, _model_on_node: None) -> Iterator[None]:
    """The claim `models` in the namespace, with the default model in its folder smollm2."""
    with _volume(cluster, namespace):
        yield


@pytest.fixture(scope="session")
def _model_on_node(cluster: Cluster, model_path: Path) -> None:
    with _namespace(cluster, "e2e-model-writer") as name, _volume(cluster, name):
        cluster.kubectl("-n", name, "apply", "-f", f"{HERE}/model-writer.yaml")
        cluster.kubectl("-n", name, "wait", "pod/model-writer", "--for=condition=Ready")
        # Renamed at the end, so that no pod ever sees half of it.
        store = (
            "mkdir -p /models/smollm2 && cat > /models/.part "
            f"&& mv /models/.part '/models/smollm2/{model_path.name}'"
        )
        shell = ("exec", "-i", "model-writer", "--", "sh", "-c", store)
        cluster.kubectl("-n", name, *shell, data=model_path.read_bytes())


@contextmanager
def _namespace(cluster: Cluster, name: str) -> Iterator[str]:
    # One that an interrupted run left behind goes first.
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=180s")
    cluster.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        # A namespace's end takes half of its pods' grace period at least: let the pods go first.
        kinds = "inferenceservices,deployments,jobs,pods"
        cluster.kubectl("-n", name, "delete", kinds, "--all", "--wait=false")
        wait_until(f"no pod left in {name}", 120, lambda: not pods(name))
        cluster.kubectl("delete", "namespace", name, "--timeout=180s")


@contextmanager
def _volume(cluster: Cluster, namespace: str) -> Iterator[None]:
    text = (HERE / "volume.yaml").read_text(encoding="utf-8").replace("NAMESPACE", namespace)
    cluster.kubectl("delete", "persistentvolume", namespace, "--ignore-not-found")
    cluster.kubectl("apply", "-f", "-", data=text.encode())
    try:
        yield
    finally:
        cluster.kubectl("delete", "persistentvolume", namespace, "--wait=false")
