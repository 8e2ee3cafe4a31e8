"""Helm, from the PATH or from a kit (CLUSTER_KIT), and what it makes of the chart."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "kserve-llamacpp"
RELEASE = "test"
FULLNAME = f"{RELEASE}-kserve-llamacpp"
# Some builds of helm think of a Kubernetes that is older than the chart's oldest.
_KUBERNETES = "1.34.0"


class HelmFailed(Exception):
    """Helm refused; the text is its own."""


@cache
def program() -> str:
    """Return helm's path: from the PATH, else from the kit's state, else from the kit itself."""
    if found := shutil.which("helm"):
        return found
    installed = Path(os.environ.get("KIT_STATE", "/var/lib/kserve-kit")) / "bin" / "helm"
    if installed.is_file():
        return os.fspath(installed)
    packed = Path(os.environ.get("CLUSTER_KIT", "")) / "bin" / "helm.xz"
    if os.environ.get("CLUSTER_KIT") and packed.is_file():
        unpacked = Path(tempfile.mkdtemp(prefix="helm-")) / "helm"
        unpacked.write_bytes(lzma.decompress(packed.read_bytes()))
        unpacked.chmod(0o755)
        return os.fspath(unpacked)
    raise HelmFailed(
        "no helm: put helm 3 on the PATH (https://helm.sh/docs/intro/install/), or set CLUSTER_KIT "
        "to a kit that has bin/helm.xz"
    )


def run(*arguments: str) -> str:
    """Run helm and return what it prints; raises HelmFailed with its complaint."""
    done = subprocess.run([program(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HelmFailed(done.stderr + done.stdout)
    return done.stdout


def lint(values: Path) -> str:
    """Lint the chart with a file of values; warnings are failures."""
    return run("lint", "--strict", "--kube-version", _KUBERNETES, "-f", str(values), str(CHART))


class Rendered:
    """The objects of a release."""

    def __init__(self, objects: Iterable[dict[str, Any]]) -> None:
        self.objects = list(objects)

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    def has(self, kind: str, name: str) -> bool:
        """Tell whether there is such an object."""
        return any(found["metadata"]["name"] == name for found in self.all(kind))

    def one(self, kind: str, name: str = f"{FULLNAME}-proxy") -> dict[str, Any]:
        """Return the object of that kind and name, by default the proxy's."""
        (found,) = [entry for entry in self.all(kind) if entry["metadata"]["name"] == name]
        return found


def render(values: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Rendered:
    """Render the chart with these values (and a file's below them); raises HelmFailed."""
    files = ["-f", str(file)] if file is not None else []
    command = [program(), "template", RELEASE, str(CHART), "--kube-version", _KUBERNETES]
    done = subprocess.run(
        [*command, "--namespace", "llm", *files, "-f", "-"],
        input=yaml.safe_dump(dict(values or {})),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise HelmFailed(done.stderr)
    return Rendered(found for found in yaml.safe_load_all(done.stdout) if found is not None)
