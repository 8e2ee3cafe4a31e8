"""Whether two files hold the same model, without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

_HEAD_BYTES = (
    16 << 20
)  # a GGUF begins with its metadata, vocabulary included, and its tensors' list
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


def file_hash(path: Path) -> str:
    """Return a hash of a file's size, its beginning, and samples over all of the rest.

    Another training of the same model changes nearly every weight, and so the samples; where the
    file lies and what it is called change nothing. Raises OSError.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for at in range(_NUM_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * at // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
