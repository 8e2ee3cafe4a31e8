"""Whether two files hold the same model, without reading all of them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_HEAD_BYTES = (
    16 << 20
)  # a GGUF begins with its metadata, vocabulary included, and its tensors' list
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


_FIRST_PART = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")


def file_hash(path: Path) -> str:
    """Return a hash of a file's size, its beginning, and samples over all of the rest.

    Another training of the same model changes nearly every weight, and so the samples; where the
    file lies and what it is called change nothing. Of a model in several files, the path of the
    first one stands for all. Raises OSError.
    """
    digest = hashlib.sha256()
    for part in _parts(path):
        _add(digest, part)
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    match = _FIRST_PART.fullmatch(path.name)
    if match is None:
        return [path]
    name, count = match.groups()
    return [path.with_name(f"{name}-{at:05}-of-{count}.gguf") for at in range(1, int(count) + 1)]


def _add(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for at in range(_NUM_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * at // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
