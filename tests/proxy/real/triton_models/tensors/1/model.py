"""Says each text of a tensor in capitals; a token is a word."""

from __future__ import annotations

import os
import sys
from typing import Any

# Triton's interpreter reads no PYTHONPATH.
sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)

import numpy as np  # noqa: E402  # found only now
import triton_python_backend_utils as triton  # noqa: E402  # Triton's own, needs numpy


class TritonPythonModel:
    """A model without weights; it raises at the text `raise`."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with tensors as long as its own."""
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    given = triton.get_input_tensor_by_name(request, "text_input").as_numpy().ravel()
    texts = [str(one, "utf-8") for one in given]
    if "raise" in texts:
        raise ValueError("something inside")
    counts = np.array([len(text.split()) for text in texts], dtype=np.int32)
    tensors = [
        triton.Tensor("text_output", _strings([text.upper() for text in texts])),
        triton.Tensor("finish_reason", _strings(["length" for _ in texts])),
        triton.Tensor("num_input_tokens", counts),
        triton.Tensor("num_output_tokens", counts),
    ]
    return triton.InferenceResponse(tensors)


def _strings(texts: list[str]) -> Any:
    return np.array([text.encode() for text in texts], dtype=np.object_)
