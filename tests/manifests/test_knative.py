"""Knative's overlays fit the predictor's defaults; a cluster sees the rest (tests/e2e)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from kserve_llamacpp.config import add_flags

ROOT = Path(__file__).parents[2] / "manifests"
KNATIVE_DRAIN_SECONDS = 30
# Knative's own max-revision-timeout-seconds
MAX_TIMEOUT_SECONDS = 600


def predictor_of(folder: str) -> dict[str, Any]:
    """Return what an overlay sets on the InferenceService's predictor."""
    text = (ROOT / folder / "kustomization.yaml").read_text(encoding="utf-8")
    patches = [yaml.safe_load(patch["patch"]) for patch in yaml.safe_load(text)["patches"]]
    (found,) = (patch["spec"]["predictor"] for patch in patches if "spec" in patch)
    assert isinstance(found, dict)
    return found


def flags(*arguments: str) -> argparse.Namespace:
    """Read the predictor's own flags as it reads them."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return parser.parse_args(arguments)


def test_concurrency_target_is_the_number_of_sequences() -> None:
    """A replica is meant for as many requests as the predictor decodes together."""
    predictor = predictor_of("autoscaling/knative/concurrency")

    assert predictor["scaleMetric"] == "concurrency"
    assert predictor["scaleTarget"] == flags().max_sequences


def test_pod_has_the_time_to_drain() -> None:
    """Knative's drain, the drain delay and the grace period fit into the timeout."""
    predictor = predictor_of("kserve/smollm2-knative")
    given = flags(*predictor["model"]["args"])

    needed = KNATIVE_DRAIN_SECONDS + given.drain_delay_seconds + given.grace_seconds

    assert needed < predictor["timeout"] <= MAX_TIMEOUT_SECONDS


def test_scale_to_zero() -> None:
    """The overlay that scales to zero changes nothing else of the one by concurrency."""
    assert predictor_of("autoscaling/knative/scale-to-zero") == {"minReplicas": 0}
