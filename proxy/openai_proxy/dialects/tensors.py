"""The tensors of a V2 answer, as JSON or binary behind it.

Source: the Open Inference Protocol and its binary data extension: behind the JSON object come the
bytes of each output that has `binary_data_size`, in the outputs' order; an element of type BYTES is
four bytes of length, lowest first, and so many bytes.
"""

from __future__ import annotations

import json
from typing import Any

from openai_proxy.dialects.base import Json
from openai_proxy.dialects.fields import json_value
from openai_proxy.dialects.openai import invalid_response
from openai_proxy.dialects.upstream_errors import answered

_LENGTH_BYTES = 4
_SPACE = " \t\r\n"


def read_answer(body: bytes) -> tuple[Json, bytes]:
    """Return an answer's JSON object and the binary data behind it.

    The header that tells where the object ends is not needed: it ends with its last brace.
    Raises BadGateway, also for an error under 200.
    """
    value = json_value(body)
    if value is not None:
        return answered(value), b""
    text = body.decode("latin-1")  # a character a byte: the object's end is an offset in the body
    try:
        _, end = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip(_SPACE)))
    except (ValueError, RecursionError):
        raise invalid_response() from None
    return answered(json_value(body[:end])), body[end:]


def read_tensors(answer: Json, binary: bytes) -> dict[str, list[Any]]:
    """Return the elements of each output by its name, in the outputs' order.

    Binary ones of other types than BYTES are left out. Raises BadGateway.
    """
    outputs = answer.get("outputs")
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise invalid_response()
    sizes = [_binary_size(output) for output in outputs]
    at = len(binary) - sum(size or 0 for size in sizes)
    if at < 0 or binary[:at].strip():
        raise invalid_response()
    tensors: dict[str, list[Any]] = {}
    for output, size in zip(outputs, sizes, strict=True):
        name = str(output.get("name"))
        if size is None:
            tensors[name] = _flat(output.get("data"))
            continue
        if output.get("datatype") == "BYTES":
            tensors[name] = _strings(binary[at : at + size])
        at += size
    return tensors


def _binary_size(output: Json) -> int | None:
    parameters = output.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None or (size == 0 and "data" in output):
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise invalid_response()
    return size


def _strings(data: bytes) -> list[Any]:
    found: list[Any] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[start - _LENGTH_BYTES : start], "little")
        if start > len(data) or at > len(data):
            raise invalid_response()
        found.append(data[start:at].decode(errors="replace"))
    return found


def _flat(data: Any) -> list[Any]:
    """Return elements that may be nested as the tensor is, in their order."""
    if not isinstance(data, list):
        raise invalid_response()
    flat: list[Any] = []
    for element in data:
        flat += _flat(element) if isinstance(element, list) else [element]
    return flat
