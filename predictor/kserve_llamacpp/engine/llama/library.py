"""llama.cpp's library: loaded with its backends, its log lines passed on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp

from kserve_llamacpp.wire.frames import FatalReason

llama: Any = llama_cpp  # its annotations say arrays where its functions take pointers

_LOG_LEVELS = {3: "warning", 4: "error"}  # what it calls info is debug to us
_LOG_CONTINUES = 5
# said of every pool that is larger than one sequence may be; `max_length` bounds each of ours
_LOG_EXPECTED = "possible training context overflow"


class LoadFailed(Exception):
    """The model cannot be served as configured; `reason` says which kind of mending helps."""

    def __init__(self, reason: FatalReason, message: str) -> None:
        super().__init__(message)
        self.reason: FatalReason = reason


def start_library(on_log: Callable[[str, str], None]) -> Any:
    """Make llama.cpp ready; return what must be kept as long as it is used.

    `on_log` gets a level and a line. Raises LoadFailed.
    """
    callback = _log_callback(on_log)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    load_backends(llama.llama_cpp._lib, llama.llama_cpp._base_path)
    llama.llama_backend_init()
    return callback


def load_backends(library: Any, directory: Path) -> None:
    """Load what computes: of the libraries in the directory, the best for this machine's CPU.

    A portable build has its backends there, one library each; a build for one machine has them
    linked in, and nothing is loaded. Raises LoadFailed.
    """
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    if library.ggml_backend_reg_count() > 0:
        return
    library.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    library.ggml_backend_load_all_from_path.restype = None
    library.ggml_backend_load_all_from_path(str(directory).encode())
    if library.ggml_backend_reg_count() == 0:
        raise LoadFailed(
            "configuration",
            f"llama.cpp found none of its backends (libggml-cpu-*.so) for this machine in "
            f"{directory}: install a build for this architecture, or correct LLAMA_CPP_LIB_PATH",
        )


def _log_callback(on_log: Callable[[str, str], None]) -> Any:
    """Pass llama.cpp's lines on; a line may come in pieces."""
    parts: list[str] = []
    level_of_line = "debug"

    def log(level: int, text: bytes, _: Any) -> None:
        nonlocal level_of_line
        if level != _LOG_CONTINUES:
            level_of_line = _LOG_LEVELS.get(level, "debug")
        parts.append(text.decode("utf-8", "replace"))
        if parts[-1].endswith("\n"):
            line = "".join(parts).rstrip()
            parts.clear()
            on_log("debug" if _LOG_EXPECTED in line else level_of_line, line)

    return llama.llama_log_callback(log)
