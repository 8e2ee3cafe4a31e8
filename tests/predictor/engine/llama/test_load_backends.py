"""Where llama.cpp's backends come from: linked in, or libraries beside it (portable builds)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_llamacpp.engine.llama import LoadFailed, load_backends

_DIRECTORY = Path("/opt/llama.cpp/lib")


class _Function:
    """A C function, whose types are set as attributes."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class _Ggml:
    """A library with backends linked in, and others to be found in a directory."""

    def __init__(self, linked: int, found: int) -> None:
        self._count = linked
        self._found = found
        self.loaded_from: list[bytes] = []
        self.ggml_backend_reg_count = _Function(lambda: self._count)
        self.ggml_backend_load_all_from_path = _Function(self._load)

    def _load(self, path: bytes) -> None:
        self.loaded_from.append(path)
        self._count += self._found


def test_a_portable_build_loads_its_backends() -> None:
    """Without a backend linked in, those beside the library are loaded."""
    library = _Ggml(linked=0, found=1)

    load_backends(library, _DIRECTORY)

    assert library.loaded_from == [b"/opt/llama.cpp/lib"]


def test_a_build_for_one_machine_loads_nothing() -> None:
    """A backend that is linked in is the only one: loading it again would register it twice."""
    library = _Ggml(linked=1, found=1)

    load_backends(library, _DIRECTORY)

    assert library.loaded_from == []


def test_no_backend_for_this_machine() -> None:
    """Where none fits, the error names the directory and the setting that leads there."""
    library = _Ggml(linked=0, found=0)

    with pytest.raises(LoadFailed, match=r"/opt/llama\.cpp/lib.*LLAMA_CPP_LIB_PATH") as caught:
        load_backends(library, _DIRECTORY)

    assert caught.value.reason == "configuration"
