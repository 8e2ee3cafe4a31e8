"""Says the prompt's words in capitals, one a response: a decoupled model, as vLLM's is."""

from __future__ import annotations

import os
import sys
from typing import Any

# Triton's interpreter reads no PYTHONPATH.
sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)

import numpy as np  # noqa: E402  # found only now
import triton_python_backend_utils as triton  # noqa: E402  # Triton's own, needs numpy


class TritonPythonModel:
    """A model without weights; it fails at the word `fail`, and raises at `raise`."""

    def execute(self, requests: list[Any]) -> None:
        """Answer each request by its sender."""
        for request in requests:
            sender = request.get_response_sender()
            words = str(_value(request, "text_input", b""), "utf-8").split()
            pieces = [f"{word.upper()} " for word in words[: _value(request, "max_tokens", 99)]]
            if "RAISE " in pieces:
                raise ValueError("something inside")
            good = pieces[: pieces.index("FAIL ")] if "FAIL " in pieces else pieces
            for piece in good if _value(request, "stream", True) else ["".join(good)]:
                if piece:
                    sender.send(_text(piece))
            if len(good) < len(pieces):
                sender.send(triton.InferenceResponse(error=triton.TritonError("failed inside")))
            sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _value(request: Any, name: str, default: Any) -> Any:
    tensor = triton.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().ravel()[0]


def _text(piece: str) -> Any:
    tensor = triton.Tensor("text_output", np.array([piece.encode()], dtype=np.object_))
    return triton.InferenceResponse([tensor])
