"""The InferenceServices for real models ask for the memory that their models need."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Any

import pytest

from kserve_llamacpp.config import add_flags
from tests.manifests.test_kserve import ROOT, load

_GIB = 1 << 30
_OVERHEAD = _GIB  # server, compute buffers, and the engine's own reserve of 128 MiB
_F16 = 2


@dataclass(frozen=True)
class Model:
    """A model as its GGUF file describes it."""

    size_bytes: int
    num_layers: int
    num_kv_heads: int
    head_size: int

    @property
    def bytes_per_token(self) -> int:
        """What a token takes of the KV cache: a key and a value in each layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * _F16


MODELS = {
    "phi-3-mini": Model(2_393_231_072, num_layers=32, num_kv_heads=32, head_size=96),
    "mistral-7b": Model(4_372_812_000, num_layers=32, num_kv_heads=8, head_size=128),
}


def inference_service(name: str) -> dict[str, Any]:
    return load(ROOT / "kserve" / name / "inference-service.yaml")


def model_of(name: str) -> dict[str, Any]:
    return dict(inference_service(name)["spec"]["predictor"]["model"])


def gibibytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)Gi", quantity)
    assert match is not None
    return int(match[1]) * _GIB


@pytest.mark.parametrize("name", MODELS)
def test_memory_holds_weights_and_cache(name: str) -> None:
    """Weights, the whole KV cache and room to compute in fit, with less than 2 GiB to spare."""
    model = MODELS[name]
    flags = dict(flag.lstrip("-").split("=") for flag in model_of(name)["args"])
    needed = model.size_bytes + int(flags["n_ctx"]) * model.bytes_per_token + _OVERHEAD
    given = gibibytes(model_of(name)["resources"]["limits"]["memory"])

    assert needed <= given < needed + 2 * _GIB


@pytest.mark.parametrize("name", MODELS)
def test_requested_is_what_may_be_used(name: str) -> None:
    """Memory and CPUs are the pod's own: an engine waits for its slowest thread."""
    resources = model_of(name)["resources"]

    assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize("name", MODELS)
def test_flags_are_the_predictors(name: str) -> None:
    """The predictor knows each argument."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)

    _, unknown = parser.parse_known_args(model_of(name)["args"])

    assert unknown == []


@pytest.mark.parametrize("name", MODELS)
def test_one_file_is_fetched(name: str) -> None:
    """The storage URI names one file: a repository holds several, and the predictor takes one."""
    assert model_of(name)["storageUri"].endswith(".gguf")


@pytest.mark.parametrize("name", MODELS)
def test_name_is_the_folders(name: str) -> None:
    """An InferenceService is called as its folder."""
    assert inference_service(name)["metadata"]["name"] == name


@pytest.mark.parametrize("name", MODELS)
def test_cuda_is_thin(name: str) -> None:
    """The CUDA variant is the same model with the component for GPUs, and no more."""
    overlay = load(ROOT / "kserve" / f"{name}-cuda" / "kustomization.yaml")

    assert overlay["resources"] == [f"../{name}"]
    assert overlay["components"] == ["../components/cuda"]
    assert set(overlay) == {"apiVersion", "kind", "resources", "components"}
