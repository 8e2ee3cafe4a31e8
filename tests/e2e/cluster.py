"""A cluster to test on: the user's (KUBECONFIG), or one that a kit (CLUSTER_KIT) or kind makes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_KIT_NODE_PORT = 30080  # mapped to the host's loopback
_KIND_NAME = "kserve-llamacpp-e2e"
_KIT_KNATIVE = "http://127.0.0.1:30081"
_KIT_PROMETHEUS = "http://prometheus.monitoring.svc:9090"
# What tells that a part is installed, in a cluster that was given
_SIGNS = {
    "keda": "scaledobjects.keda.sh",
    "knative": "services.serving.knative.dev",
    "metrics-server": "apiservice/v1beta1.metrics.k8s.io",
}


@dataclass(frozen=True)
class Cluster:
    """How to talk to the cluster and to put images into it."""

    environ: Mapping[str, str]
    load_command: tuple[str, ...]
    docker_command: tuple[str, ...]
    build_arguments: tuple[str, ...]
    # A node port that answers on the host's loopback; without one, ports are forwarded.
    node_port: int | None
    # The kit's script that installs parts; None where the cluster is the user's.
    up_command: str | None
    # Knative's ingress, from the host; Prometheus, from inside the cluster
    knative_url: str | None
    prometheus_url: str | None
    _images: set[str] = field(default_factory=set)

    def kubectl(self, *arguments: str, data: bytes | None = None) -> str:
        """Run kubectl and return what it prints; its errors are the test's."""
        return self._run("kubectl", *arguments, data=data)

    def image(self, target: str) -> str:
        """Build one of our images and load it into the cluster, once; return its name."""
        name = f"kserve-llamacpp/{target}:e2e"
        if target not in self._images:
            self.build(name, ROOT, "--target", target)
            self._images.add(target)
        return name

    def build(self, name: str, context: Path, *arguments: str) -> None:
        """Build an image and load it into the cluster."""
        build = (*self.docker_command, "build", *self.build_arguments, *arguments)
        self._run(*build, "--tag", name, str(context))
        self._run(*self.load_command, name)

    @property
    def base_image(self) -> str:
        """The image that ours are built on."""
        given = re.search(r"--build-arg[= ]BASE_IMAGE=(\S+)", " ".join(self.build_arguments))
        if given is not None:
            return given[1]
        text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        match = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE)
        assert match is not None
        return match[1]

    def inspect(self, image: str) -> dict[str, Any]:
        """Return what docker knows of an image, which is pulled where only builds have used it."""
        if self._fails(*self.docker_command, "image", "inspect", image):
            self._run(*self.docker_command, "pull", image)
        found: list[dict[str, Any]] = json.loads(
            self._run(*self.docker_command, "image", "inspect", image)
        )
        return found[0]

    def needs(self, *parts: str) -> None:
        """Install keda, knative, metrics-server, prometheus, or skip the test that needs them."""
        if self.up_command is not None:
            self._run(self.up_command, "--with", ",".join(parts))
            return
        for part in parts:
            if part == "prometheus":
                missing = self.prometheus_url is None
                hint = "set E2E_PROMETHEUS to its URL inside the cluster"
            else:
                kind = _SIGNS[part] if "/" in _SIGNS[part] else f"crd/{_SIGNS[part]}"
                missing = not self.kubectl("get", kind, "--ignore-not-found", "--output=name")
                hint = f"it has no {_SIGNS[part]}"
            if missing:
                pytest.skip(f"the cluster that was given lacks {part}: {hint}")

    def describe(self, namespace: str) -> str:
        """Return what is in a namespace, its events and the ends of its pods' logs."""
        commands: list[tuple[str, ...]] = [
            ("get", "inferenceservices,pods", "--output=wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
        ]
        names = self._told("-n", namespace, "get", "pods", "--output=name").split()
        commands += [
            ("logs", name, "--all-containers", "--prefix", "--tail=40") for name in names[:8]
        ]
        return "\n".join(self._told("-n", namespace, *command) for command in commands)

    def _told(self, *arguments: str) -> str:
        command = ("kubectl", *arguments)
        done = subprocess.run(
            command, env=dict(self.environ), capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def forward(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """Forward a free local port to a port of a pod or service; yield the URL."""
        command = ["kubectl", "-n", namespace, "port-forward", target, f":{port}"]
        with subprocess.Popen(
            command, env=dict(self.environ), stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                match = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
                assert match is not None, "kubectl port-forward did not start"
                yield f"http://127.0.0.1:{match[1]}"
            finally:
                process.terminate()

    def _fails(self, *command: str) -> bool:
        done = subprocess.run(command, env=dict(self.environ), capture_output=True, check=False)
        return done.returncode != 0

    def _run(self, *command: str, data: bytes | None = None) -> str:
        done = subprocess.run(
            command, env=dict(self.environ), input=data, capture_output=True, check=False
        )
        errors = done.stderr.decode("utf-8", "replace")
        assert done.returncode == 0, f"{' '.join(command)}: {errors[-4000:]}"
        return done.stdout.decode()


@contextlib.contextmanager
def open_cluster(environ: Mapping[str, str]) -> Iterator[Cluster]:
    """Yield the cluster that the environment names; one that the kit made is taken down again."""
    if kit := environ.get("CLUSTER_KIT"):
        with _kit(Path(kit).resolve(), environ) as cluster:
            yield cluster
    elif environ.get("KUBECONFIG"):
        yield _given(environ)
    elif (install := environ.get("E2E_INSTALL")) and shutil.which("kind"):
        with _kind(install, environ) as cluster:
            yield cluster
    else:
        raise RuntimeError(
            "no cluster: set KUBECONFIG to one with KServe (and make its context the current one), "
            "or CLUSTER_KIT to a folder with the scripts up, down, load and python-base, "
            "or, with kind on the PATH, E2E_INSTALL to a command that installs KServe"
        )


def _given(environ: Mapping[str, str]) -> Cluster:
    """Return the user's cluster; images get into it by E2E_LOAD, or as kind does it."""
    docker = {**environ, "DOCKER_BUILDKIT": "1"}
    context = _output("kubectl", "config", "current-context", environ=environ)
    load = tuple(shlex.split(environ.get("E2E_LOAD", "")))
    if not load and context.startswith("kind-"):
        load = ("kind", "load", "docker-image", "--name", context.removeprefix("kind-"))
    if not load:
        raise RuntimeError(
            f"E2E_LOAD is not set: for a cluster that is not kind's ({context}), give the command "
            "that makes an image of the local docker known to it"
        )
    build = tuple(shlex.split(environ.get("E2E_BUILD_ARGS", "")))
    knative, prometheus = environ.get("E2E_KNATIVE"), environ.get("E2E_PROMETHEUS")
    return Cluster(docker, load, ("docker",), build, None, None, knative, prometheus)


@contextlib.contextmanager
def _kind(install: str, environ: Mapping[str, str]) -> Iterator[Cluster]:
    """Make a cluster with kind, and KServe in it; both are gone afterwards."""
    arguments = shlex.split(environ.get("E2E_KIND_ARGS", ""))
    with tempfile.TemporaryDirectory() as folder:
        settings = {**environ, "KUBECONFIG": os.fspath(Path(folder, "kubeconfig"))}
        _output("kind", "create", "cluster", "--name", _KIND_NAME, *arguments, environ=settings)
        try:
            _output(*shlex.split(install), environ=settings)
            yield _given(settings)
        finally:
            _output("kind", "delete", "cluster", "--name", _KIND_NAME, environ=settings)


@contextlib.contextmanager
def _kit(kit: Path, environ: Mapping[str, str]) -> Iterator[Cluster]:
    state = Path(environ.get("KIT_STATE", "/var/lib/kserve-kit"))
    kubeconfig = Path(environ.get("KIT_KUBECONFIG", state / "kubeconfig"))
    was_up = _answers(kubeconfig, {**environ, "PATH": f"{state}/bin:{environ['PATH']}"})
    try:
        lines = _output(os.fspath(kit / "up"), environ=environ).splitlines()
        settings = {
            **environ,
            "PATH": f"{state}/bin:{environ['PATH']}",
            "KUBECONFIG": lines[-1],
            "DOCKER_BUILDKIT": "1",
        }
        base = _output(os.fspath(kit / "python-base"), environ=settings)
        arguments = ("--network=host", "--pull=false", f"--build-arg=BASE_IMAGE={base}")
        # Debian's client has BuildKit inside; another one may want a plugin.
        docker = ("/usr/bin/docker",)
        yield Cluster(
            settings,
            (os.fspath(kit / "load"),),
            docker,
            arguments,
            _KIT_NODE_PORT,
            os.fspath(kit / "up"),
            _KIT_KNATIVE,
            _KIT_PROMETHEUS,
        )
    finally:
        if not was_up:
            _output(os.fspath(kit / "down"), environ=environ)


def _answers(kubeconfig: Path, environ: Mapping[str, str]) -> bool:
    if not kubeconfig.exists():
        return False
    command = ["kubectl", "--kubeconfig", os.fspath(kubeconfig), "get", "--raw", "/readyz"]
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _output(*command: str, environ: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=dict(environ), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def wait_until(what: str, seconds: float, condition: Callable[[], Any]) -> Any:
    """Return the condition's first true value; it is looked at every half second."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} seconds"
        time.sleep(0.5)
    return value


def is_answering(url: str) -> bool:
    """Tell whether a URL answers 200 now."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
