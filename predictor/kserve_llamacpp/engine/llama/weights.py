"""A loaded model: its weights, and what its file says of it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from kserve_llamacpp.engine.llama.library import LoadFailed, llama

_PROGRESS_SECONDS = 1.0


class Weights:
    """What was loaded from a GGUF file; owner: the backend. `handle` is llama.cpp's model."""

    def __init__(self, path: Path, n_gpu_layers: int, on_progress: Callable[[float], None]) -> None:
        """Load a file; `on_progress` gets fractions. Raises LoadFailed."""
        self.handle = _load(path, n_gpu_layers, on_progress)
        self.size_bytes: int = llama.llama_model_size(self.handle)
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self.handle)
        self.num_parameters: int = llama.llama_model_n_params(self.handle)

    @cached_property
    def architecture(self) -> str:
        """The name of the model's architecture, as `llama` or `phi3`."""
        return self._meta("general.architecture") or "unknown"

    @property
    def is_recurrent(self) -> bool:
        """Whether a sequence has a state that cannot be cut, beside its cells or in their place."""
        handle = self.handle
        return bool(llama.llama_model_is_recurrent(handle) or llama.llama_model_is_hybrid(handle))

    @property
    def num_heads(self) -> int:
        """How many heads attention has (in the first layer), at least 1."""
        return max(1, int(llama.llama_model_n_head(self.handle)))

    @property
    def has_cells(self) -> bool:
        """Whether tokens take cells: a recurrent state stays as large as it is."""
        return not llama.llama_model_is_recurrent(self.handle) or bool(
            llama.llama_model_is_hybrid(self.handle)
        )

    @property
    def window(self) -> int:
        """How many of the latest tokens some layers look at only; 0: all layers at all of them."""
        return int(llama.llama_model_n_swa(self.handle))

    @property
    def description(self) -> str:
        """What llama.cpp calls the model."""
        buffer = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The file's Jinja template, if it has one."""
        template = llama.llama_model_chat_template(self.handle, None)
        return template.decode("utf-8", "replace") if template else None

    def values_per_cell(self) -> int:
        """Return how many numbers a token takes in the KV cache, over all layers (a bound)."""
        prefix = self.architecture
        head_size = llama.llama_model_n_embd(self.handle) // self.num_heads
        key_size = int(self._meta(f"{prefix}.attention.key_length") or head_size)
        value_size = int(self._meta(f"{prefix}.attention.value_length") or head_size)
        # llama.cpp tells the first layer's; in a hybrid model that may have none
        num_kv_heads = llama.llama_model_n_head_kv(self.handle) or self.num_heads
        layers = llama.llama_model_n_layer(self.handle)
        return int(layers * num_kv_heads * (key_size + value_size))

    def _meta(self, key: str) -> str | None:
        return meta(self.handle, key)


def meta(model: Any, key: str) -> str | None:
    """Return what a model's file says under a key, None where it says nothing."""
    buffer = ctypes.create_string_buffer(1 << 16)
    length = llama.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if length >= 0 else None


def _load(path: Path, n_gpu_layers: int, on_progress: Callable[[float], None]) -> Any:
    last = time.monotonic()

    def progress(fraction: float, _: Any) -> bool:
        nonlocal last
        if fraction >= 1 or time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            on_progress(fraction)
        return True

    params = llama.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    params.progress_callback = llama.llama_progress_callback(progress)
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise LoadFailed(
            "model_file",
            f"llama.cpp cannot load {path}: the file is damaged, incomplete or of "
            "an architecture that this build does not know (the lines above say which)",
        )
    return model
