"""compose.yaml is one that compose takes, and keeps what the manifests promise."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft201909Validator

from tests.manifests.schemas import FOLDER
from tests.manifests.test_kserve import ROOT

COMPOSE = yaml.safe_load((ROOT.parent / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT.parent / "Dockerfile").read_text(encoding="utf-8")


@cache
def schema() -> Draft201909Validator:
    packed = (FOLDER / "compose.json.gz").read_bytes()
    return Draft201909Validator(json.loads(gzip.decompress(packed))["schema"])


def settings_of(service: dict[str, Any]) -> dict[str, str]:
    """Return the flags and variables of a service, under the names of the settings."""
    found = dict(flag.lstrip("-").split("=", 1) for flag in service.get("command", []))
    for name, value in service.get("environment", {}).items():
        found[name.removeprefix("OPENAI_PROXY_").lower()] = str(value)
    return found


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)s", duration)
    assert match is not None
    return float(match[1])


def variables(value: object) -> Iterator[str]:
    yield from re.findall(r"\$\{(\w+)", json.dumps(value))


def test_compose_takes_it() -> None:
    """The file holds to compose's published schema."""
    assert [error.message for error in schema().iter_errors(COMPOSE)] == []


def test_schema_finds_mistakes() -> None:
    """A field that compose does not know is found."""
    broken = copy.deepcopy(COMPOSE)
    broken["services"]["proxy"]["port"] = ["8000:8000"]

    assert any("'port'" in error.message for error in schema().iter_errors(broken))


@pytest.mark.parametrize("name", SERVICES)
def test_bare_rights(name: str) -> None:
    """A container runs as nobody, with no capability, on a root that it cannot write."""
    service = SERVICES[name]

    assert service["user"] == "65534:65534"
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108  # in the container
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_time_to_drain(name: str) -> None:
    """Compose waits longer than drain delay and grace period take together."""
    settings = settings_of(SERVICES[name])
    needed = float(settings["drain_delay_seconds"]) + float(settings["grace_seconds"])

    assert seconds(SERVICES[name]["stop_grace_period"]) > needed


@pytest.mark.parametrize("name", SERVICES)
def test_health_tells_readiness(name: str) -> None:
    """Healthy means that requests are answered, and nothing but the image's Python is needed."""
    test = SERVICES[name]["healthcheck"]["test"]

    assert test[:3] == ["CMD", "python", "-c"]
    assert "/health/ready" in test[3]


@pytest.mark.parametrize("name", SERVICES)
def test_image_is_built_from_its_target(name: str) -> None:
    """Image and target have one name, and the target is in the Dockerfile."""
    service = SERVICES[name]
    target = service["build"]["target"]

    assert service["image"].startswith(f"kserve-llamacpp/{target}:")
    assert f" AS {target}\n" in DOCKERFILE
    for argument in service["build"]["args"]:
        assert f"ARG {argument}=" in DOCKERFILE


def test_bases_are_named_by_digest() -> None:
    """What an image is built from stands for one image for ever, the same in both files."""
    given = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", DOCKERFILE, re.MULTILINE))
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) - stages

    assert bases == {f"${{{name}}}" for name in given}
    for image in given.values():
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image
    build = SERVICES["proxy"]["build"]["args"]
    assert build["BASE_IMAGE"] == f"${{BASE_IMAGE:-{given['BASE_IMAGE']}}}"


def test_only_the_proxy_listens_on_the_host() -> None:
    """The predictor knows no keys: only the proxy is reached, by default on loopback."""
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["proxy"]
    assert SERVICES["proxy"]["ports"] == ["${LISTEN:-127.0.0.1}:${PORT:-8000}:8000"]


def test_gpu_is_a_profile() -> None:
    """Without a profile, only what any machine can run is started."""
    assert [name for name in SERVICES if "profiles" in SERVICES[name]] == ["predictor-gpu"]
    assert SERVICES["predictor-gpu"]["networks"]["default"]["aliases"] == ["predictor"]


def test_variables_are_documented() -> None:
    """What can be set is told in the docs."""
    docs = (ROOT.parent / "docs" / "compose.md").read_text(encoding="utf-8")

    for variable in variables(COMPOSE):
        assert f"`{variable}`" in docs, f"docs/compose.md does not tell of {variable}"
