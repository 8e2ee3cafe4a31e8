"""llama.cpp through llama-cpp-python's low-level API: the only module that imports llama_cpp."""

from __future__ import annotations

import ctypes
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from kserve_llamacpp import cgroup
from kserve_llamacpp.engine.engine import (
    DecodeFailed,
    KVCacheFull,
    LogitsNotFinite,
    PromptTooLong,
    Row,
)
from kserve_llamacpp.engine.frames import FatalReason, ModelFacts, SamplingParams
from kserve_llamacpp.engine.sampling import draw_seed
from kserve_llamacpp.engine.special_tokens import SpecialTokens

llama: Any = llama_cpp  # its annotations say arrays where its functions take pointers

_GIB = 1 << 30
_CELL_BYTES = 2  # F16
_RESERVE_BYTES = 256 << 20  # compute buffers (132 MiB for a 7B model), logits, Python
_MIN_CTX = 512
_PROGRESS_SECONDS = 1.0
_SPECIAL = llama.LLAMA_TOKEN_ATTR_UNKNOWN | llama.LLAMA_TOKEN_ATTR_CONTROL
_SPECIAL |= llama.LLAMA_TOKEN_ATTR_USER_DEFINED
_RSTRIP = llama.LLAMA_TOKEN_ATTR_RSTRIP
_DEFAULT_MAX_CTX = 16384
_LOG_LEVELS = {3: "warning", 4: "error"}  # what it calls info is debug to us
_LOG_CONTINUES = 5
# said of every pool that is larger than one sequence may be; `max_length` bounds each of ours
_LOG_EXPECTED = "possible training context overflow"


class LoadFailed(Exception):
    """The model cannot be served as configured; `reason` says which kind of mending helps."""

    def __init__(self, reason: FatalReason, message: str) -> None:
        super().__init__(message)
        self.reason: FatalReason = reason


@dataclass(frozen=True)
class LoadOptions:
    """How to load: sizes in tokens, `n_ctx` 0 for what the model and the memory suggest."""

    model_path: Path
    n_ctx: int
    n_batch: int
    n_threads: int
    n_gpu_layers: int
    max_sequences: int


class LlamaBackend:
    """One model and its context; owner: the engine process, one thread."""

    def __init__(
        self,
        options: LoadOptions,
        on_progress: Callable[[float], None],
        on_log: Callable[[str, str], None],
    ) -> None:
        """Load the model; `on_progress` gets fractions, `on_log` a level and a line.

        Raises LoadFailed.
        """
        self._options = options
        self._log_callback = _log_callback(on_log)  # kept: llama.cpp holds a bare pointer
        llama.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        load_backends(llama.llama_cpp._lib, llama.llama_cpp._base_path)
        llama.llama_backend_init()
        # Asked before the weights are there, of which llama.cpp copies most for the CPU: afterwards
        # they would count twice.
        self._available = cgroup.available_memory()
        self._model = _load_model(options, on_progress)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._context = self._make_context(self._choose_n_ctx())
        self._memory = llama.llama_get_memory(self._context)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.n_ctx: int = llama.llama_n_ctx(self._context)
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self._model)
        self.max_length: int = min(self.n_ctx, self.n_ctx_train)
        self._pieces: dict[int, bytes] = {}
        self._specials = self._read_specials()
        self._batch = _Batch(options.n_batch)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Return the token ids of a text; its special tokens are recognised.

        Raises PromptTooLong, as soon as that is certain. May be called in another thread.
        """
        data = text.encode("utf-8", "replace")
        if len(data) > self.max_length * self._specials.longest_text:
            raise PromptTooLong
        tokens: list[int] = []
        for part in self._specials.parts(data):
            tokens += self._tokenize(part, add_special and not tokens)
            if len(tokens) > self.max_length:
                raise PromptTooLong
        return tokens

    def _tokenize(self, data: bytes, add_special: bool) -> list[int]:
        size = len(data) + 2
        tokens = (llama.llama_token * size)()
        count = llama.llama_tokenize(self._vocab, data, len(data), tokens, size, add_special, True)
        if count < 0:  # the text has more tokens than bytes; llama.cpp says how many
            size = -count
            tokens = (llama.llama_token * size)()
            count = llama.llama_tokenize(
                self._vocab, data, len(data), tokens, size, add_special, True
            )
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """Return a token's bytes; none for a control token."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._token_text(token, special=False)
        return piece

    def is_end(self, token: int) -> bool:
        """Whether the token ends generation."""
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def decode(self, rows: list[Row]) -> None:
        """Compute a batch; raises KVCacheFull or DecodeFailed."""
        code = llama.llama_decode(self._context, self._batch.fill(rows))
        if code == 1:
            raise KVCacheFull
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}")

    def sampler(self, params: SamplingParams, prompt: list[int]) -> LlamaSampler:
        """Make a sampler that draws from the batch computed last."""
        biases = dict(params.logit_bias)
        if params.ignore_eos:
            biases |= dict.fromkeys(self._end_tokens, -math.inf)
        return LlamaSampler(self._context, self.n_vocab, self.max_length, params, biases, prompt)

    def drop(self, slot: int) -> None:
        """Free all cells of a slot."""
        llama.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def facts(self) -> ModelFacts:
        """Return what the server must know of the model."""
        description = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self._model, description, len(description))
        template = llama.llama_model_chat_template(self._model, None)
        size = llama.llama_model_size(self._model)
        build = f"llama-cpp-python {llama.__version__}"
        # which instructions are used: a portable build's logits differ from one CPU to the next
        system = llama.llama_print_system_info().decode("utf-8", "replace")
        identity = (
            f"{self._options.model_path.name}/{size}/{self.n_vocab}/{build}/"
            f"{self._options.n_gpu_layers}/{self._options.n_threads}/{self.n_ctx}/{system}"
        )
        return ModelFacts(
            description=description.value.decode("utf-8", "replace"),
            architecture=self._meta("general.architecture") or "unknown",
            num_parameters=llama.llama_model_n_params(self._model),
            size_bytes=size,
            n_vocab=self.n_vocab,
            n_ctx=self.n_ctx,
            n_ctx_train=self.n_ctx_train,
            max_sequences=self._options.max_sequences,
            chat_template=template.decode("utf-8", "replace") if template else None,
            bos_token=self._special_text(llama.llama_vocab_bos(self._vocab)),
            eos_token=self._special_text(llama.llama_vocab_eos(self._vocab)),
            fingerprint="fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12],
            build=build,
        )

    def _read_specials(self) -> SpecialTokens:
        longest = 1
        texts: list[tuple[bytes, bool]] = []
        for token in range(self.n_vocab):
            text = llama.llama_vocab_get_text(self._vocab, token) or b""
            longest = max(longest, len(text))
            attributes = llama.llama_vocab_get_attr(self._vocab, token)
            if text and attributes & _SPECIAL:
                texts.append((text, bool(attributes & _RSTRIP)))
        adds_end = llama.llama_vocab_get_add_eos(self._vocab)
        adds_end |= llama.llama_vocab_get_add_sep(self._vocab)
        return SpecialTokens(dict(texts), longest, can_cut=not adds_end)

    @cached_property
    def _end_tokens(self) -> list[int]:
        return [token for token in range(self.n_vocab) if self.is_end(token)]

    def _special_text(self, token: int) -> str:
        if token < 0:
            return ""
        return self._token_text(token, special=True).decode("utf-8", "replace")

    def _token_text(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _meta(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(1 << 16)
        length = llama.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def _choose_n_ctx(self) -> int:
        """Return the number of KV cells that was asked for, or a default that fits the memory."""
        options = self._options
        per_cell = self._bytes_per_cell()
        room = self._room_for_cells()
        if options.n_ctx:
            need = options.n_ctx * per_cell
            if room is not None and need > room:
                raise self._does_not_fit(options.n_ctx, per_cell, room)
            return options.n_ctx
        n_ctx_train = llama.llama_model_n_ctx_train(self._model)
        n_ctx = min(_DEFAULT_MAX_CTX, n_ctx_train * options.max_sequences)
        while room is not None and n_ctx * per_cell > room:
            n_ctx //= 2
            if n_ctx < _MIN_CTX:
                raise self._does_not_fit(_MIN_CTX, per_cell, room)
        return int(n_ctx)

    def _room_for_cells(self) -> int | None:
        """Return the bytes left for the KV cache beside the weights, None if it is on a GPU."""
        offloads = llama.llama_supports_gpu_offload() and self._options.n_gpu_layers != 0
        if self._available is None or offloads:
            return None
        return self._available - int(llama.llama_model_size(self._model)) - _RESERVE_BYTES

    def _does_not_fit(self, n_ctx: int, per_cell: int, room: int) -> LoadFailed:
        weights = llama.llama_model_size(self._model) / _GIB
        cells = n_ctx * per_cell / _GIB
        available = (room + _RESERVE_BYTES) / _GIB + weights
        fitting = max(0, room // per_cell)
        mend = (
            f"lower --n_ctx to {fitting} or less, or give the container more memory"
            if fitting >= _MIN_CTX
            else "give the container more memory, or choose a smaller model or quantisation"
        )
        return LoadFailed(
            "out_of_memory",
            f"the model needs {weights:.2f} GiB for its weights and {cells:.2f} GiB for a KV cache "
            f"of {n_ctx} tokens, but only {available:.2f} GiB are available: {mend}",
        )

    def _bytes_per_cell(self) -> int:
        """Return what one token takes in the KV cache, over all layers (an upper bound)."""
        prefix = self._meta("general.architecture")
        num_heads = max(1, llama.llama_model_n_head(self._model))
        head_size = llama.llama_model_n_embd(self._model) // num_heads
        key_size = int(self._meta(f"{prefix}.attention.key_length") or head_size)
        value_size = int(self._meta(f"{prefix}.attention.value_length") or head_size)
        num_kv_heads = llama.llama_model_n_head_kv(self._model)
        layers = llama.llama_model_n_layer(self._model)
        return int(layers * num_kv_heads * (key_size + value_size) * _CELL_BYTES)

    def _make_context(self, n_ctx: int) -> Any:
        options = self._options
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = options.n_batch
        params.n_seq_max = options.max_sequences
        params.n_outputs_max = options.max_sequences
        params.n_threads = params.n_threads_batch = options.n_threads
        params.kv_unified = True
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            raise LoadFailed(
                "out_of_memory",
                f"llama.cpp could not set up a context of {n_ctx} tokens for "
                f"{options.max_sequences} sequences: lower --n_ctx, --max_sequences or "
                "--n_gpu_layers, or give the container more memory",
            )
        return context


class LlamaSampler:
    """A chain of llama.cpp's samplers that ends in a draw seeded for its place alone."""

    def __init__(
        self,
        context: Any,
        n_vocab: int,
        memory: int,
        params: SamplingParams,
        biases: dict[int, float],
        prompt: list[int],
    ) -> None:
        self._context = context
        self._n_vocab = n_vocab
        self._seed = params.seed
        self._is_greedy = params.temperature <= 0
        chain_params = llama.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        self._chain = llama.llama_sampler_chain_init(chain_params)
        for sampler in _samplers(n_vocab, memory, params, biases, prompt):
            llama.llama_sampler_chain_add(self._chain, sampler)
        if self._is_greedy:
            llama.llama_sampler_chain_add(self._chain, llama.llama_sampler_init_greedy())
        self._draw_at = llama.llama_sampler_chain_n(self._chain)

    def sample(self, row: int, position: int) -> int:
        """Draw from the logits of batch row `row`; raises LogitsNotFinite."""
        logits = llama.llama_get_logits_ith(self._context, row)
        view = np.ctypeslib.as_array(logits, shape=(self._n_vocab,))
        if not math.isfinite(float(view.sum())):
            raise LogitsNotFinite
        if self._is_greedy:
            return int(llama.llama_sampler_sample(self._chain, self._context, row))
        draw = llama.llama_sampler_init_dist(draw_seed(self._seed, 0, position))
        llama.llama_sampler_chain_add(self._chain, draw)
        token = int(llama.llama_sampler_sample(self._chain, self._context, row))
        llama.llama_sampler_free(llama.llama_sampler_chain_remove(self._chain, self._draw_at))
        return token

    def accept(self, token: int) -> None:
        """Take note of a token that was drawn before (a replay)."""
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def _samplers(
    n_vocab: int, memory: int, params: SamplingParams, biases: dict[int, float], prompt: list[int]
) -> list[Any]:
    """Return the samplers that reshape the distribution, in llama.cpp's usual order."""
    samplers = []
    if biases:
        array = (llama.llama_logit_bias * len(biases))(
            *(llama.llama_logit_bias(token, bias) for token, bias in biases.items())
        )
        samplers.append(llama.llama_sampler_init_logit_bias(n_vocab, len(array), array))
    if params.repetition_penalty != 1:
        repetition = llama.llama_sampler_init_penalties(
            n_vocab, memory, params.repetition_penalty, 0.0, 0.0
        )
        for token in prompt:  # this penalty counts the prompt, too; the other two do not
            llama.llama_sampler_accept(repetition, token)
        samplers.append(repetition)
    if params.frequency_penalty or params.presence_penalty:
        samplers.append(
            llama.llama_sampler_init_penalties(
                n_vocab, memory, 1.0, params.frequency_penalty, params.presence_penalty
            )
        )
    if params.temperature <= 0:
        return samplers
    if params.top_k > 0:
        samplers.append(llama.llama_sampler_init_top_k(params.top_k))
    if params.top_p < 1:
        samplers.append(llama.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0:
        samplers.append(llama.llama_sampler_init_min_p(params.min_p, 1))
    samplers.append(llama.llama_sampler_init_temp(params.temperature))
    return samplers


class _Batch:
    """The arrays behind a llama_batch, made once; owner: the backend."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._slot_counts = np.ones(size, np.int32)
        self._slots = np.zeros(size, np.int32)
        self._outputs = np.zeros(size, np.int8)
        # llama.cpp wants a pointer for each row: to the row's own element of the slots
        self._slot_pointers = self._slots.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        self._batch = llama.llama_batch()
        self._batch.token = self._tokens.ctypes.data_as(ctypes.POINTER(llama.llama_token))
        self._batch.embd = None
        self._batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(llama.llama_pos))
        self._batch.n_seq_id = self._slot_counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._batch.seq_id = self._slot_pointers.ctypes.data_as(
            ctypes.POINTER(ctypes.POINTER(llama.llama_seq_id))
        )
        self._batch.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def fill(self, rows: list[Row]) -> Any:
        """Write the rows into the arrays and return the batch, valid until the next call."""
        count = len(rows)
        assert count <= self._size
        self._tokens[:count] = [row.token for row in rows]
        self._positions[:count] = [row.position for row in rows]
        self._slots[:count] = [row.slot for row in rows]
        self._outputs[:count] = [row.is_output for row in rows]
        self._batch.n_tokens = count
        return self._batch


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


def _load_model(options: LoadOptions, on_progress: Callable[[float], None]) -> Any:
    last = time.monotonic()

    def progress(fraction: float, _: Any) -> bool:
        nonlocal last
        if fraction >= 1 or time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            on_progress(fraction)
        return True

    params = llama.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    params.progress_callback = llama.llama_progress_callback(progress)
    model = llama.llama_model_load_from_file(str(options.model_path).encode(), params)
    if not model:
        raise LoadFailed(
            "model_file",
            f"llama.cpp cannot load {options.model_path}: the file is damaged, incomplete or of "
            "an architecture that this build does not know (the lines above say which)",
        )
    return model


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
