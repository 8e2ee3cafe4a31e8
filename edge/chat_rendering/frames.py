"""What a server and its renderer's process say to each other, and how it travels.

A frame is four bytes of length (big endian) and that many bytes of JSON. The first one holds a
template and its limits, each one after it the messages of a chat.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Literal

LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 128 * 1024 * 1024

# Why there is no prompt: the template's own words, its failure, more than may be, no memory.
Reason = Literal["invalid", "refused", "failed", "too_long", "memory"]


def encode(value: Any) -> bytes:
    """Return a value's frame; raises ValueError where it is over MAX_FRAME_BYTES."""
    payload = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes is over the limit")
    return LENGTH.pack(len(payload)) + payload


def decode(payload: bytes) -> Any:
    """Return the value of a frame's payload."""
    return json.loads(payload.decode("utf-8", "surrogatepass"))
