"""The engine's backend over llama.cpp: a model, its context, its memory."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kserve_llamacpp import cgroup
from kserve_llamacpp.engine.backend.batch import Batch
from kserve_llamacpp.engine.backend.library import LoadFailed, llama, start_library
from kserve_llamacpp.engine.backend.memory import LlamaMemory
from kserve_llamacpp.engine.backend.sampler import LlamaSampler, Samplers
from kserve_llamacpp.engine.backend.sizing import Memory, choose_n_ctx
from kserve_llamacpp.engine.backend.vocabulary import Vocabulary
from kserve_llamacpp.engine.backend.weights import Weights
from kserve_llamacpp.engine.cache.costs import Costs
from kserve_llamacpp.engine.engine import DecodeFailed, KVCacheFull, Row
from kserve_llamacpp.engine.file_hash import file_hash
from kserve_llamacpp.engine.frames import ModelFacts, SamplingParams

_BYTES_PER_VALUE = 2  # F16, BF16
_BF16 = 30  # GGML_TYPE_BF16, which the binding leaves out
_TILED_ROWS = 64  # from so many rows on, attention on the CPU looks at all cells of 16 rows at once
_PROBE_TOKENS = 16
_PROBE_CELLS = 2048
_PROBE_ROUNDS = 3
_MAX_HOST_BYTES = 1 << 30


@dataclass(frozen=True)
class LoadOptions:
    """How to load: sizes in tokens, `n_ctx` 0 for what the model and the memory suggest."""

    model_path: Path
    n_ctx: int
    n_batch: int
    n_threads: int
    n_gpu_layers: int
    max_sequences: int
    kv_cache: Literal["unified", "split"] = "unified"
    is_deterministic: bool = False


class LlamaBackend:
    """One model and its context; owner: the engine process, one thread.

    `num_cells` is what all sequences together can have in the KV cache; `shares_cells` whether
    they can share them; `can_cut` whether a sequence can go back to an earlier token; `has_window`
    whether some layers look at the latest tokens only.
    """

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
        self._library = start_library(on_log)  # kept: llama.cpp holds bare pointers into it
        # Asked before the weights are there, of which llama.cpp copies most for the CPU: afterwards
        # they would count twice.
        available = cgroup.available_memory()
        self._weights = Weights(options.model_path, options.n_gpu_layers, on_progress)
        self._vocabulary = Vocabulary(self._weights.handle)
        offloads = bool(llama.llama_supports_gpu_offload()) and options.n_gpu_layers != 0
        self.can_cut = not self._weights.is_recurrent
        window = self._weights.window
        can_park = LlamaMemory.can_park(options.max_sequences, window)
        self.shares_cells = options.kv_cache == "unified" and self.can_cut and can_park
        self.has_window = window > 0
        n_ctx = choose_n_ctx(
            options.n_ctx,
            self._weights.n_ctx_train * options.max_sequences,
            Memory(
                weights=self._weights.size_bytes,
                per_cell=self._weights.values_per_cell() * _BYTES_PER_VALUE,
                available=None if offloads else available,
            ),
        )
        self._context = self._make_context(n_ctx)
        self.memory = LlamaMemory(
            self._context,
            options.max_sequences,
            can_park=self.shares_cells,
            window=window,
        )
        self.n_vocab: int = self._vocabulary.size
        self.num_cells: int = llama.llama_n_ctx(self._context)
        longest = llama.llama_n_ctx_seq(self._context)
        self.max_length: int = min(longest, self._weights.n_ctx_train)
        if not self._weights.has_cells:
            self.num_cells = options.max_sequences * self.max_length
        self.max_mixed_rows = options.n_batch
        if not offloads:
            self.max_mixed_rows = min(options.n_batch, _TILED_ROWS - 1)
        self._batch = Batch(options.n_batch, self.memory.slot_twin)
        self._samplers = Samplers(self._context, self._vocabulary, self.max_length)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Return the token ids of a text; its special tokens are recognised.

        Raises PromptTooLong, as soon as that is certain. May be called in another thread.
        """
        return self._vocabulary.tokenize(text, add_special, self.max_length)

    def piece(self, token: int) -> bytes:
        """Return a token's bytes; none for a control token."""
        return self._vocabulary.piece(token)

    def special_piece(self, token: int) -> bytes:
        """Return a token's bytes, those of a control token, too."""
        return self._vocabulary.text(token, special=True)

    def is_end(self, token: int) -> bool:
        """Whether the token ends generation."""
        return self._vocabulary.is_end(token)

    def decode(self, rows: list[Row]) -> None:
        """Compute a batch; raises KVCacheFull or DecodeFailed."""
        code = llama.llama_decode(self._context, self._batch.fill(rows))
        if code == 1:
            raise KVCacheFull
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}")

    def sampler(self, params: SamplingParams, prompt: list[int]) -> LlamaSampler:
        """Make a sampler that draws from the batch computed last."""
        return self._samplers.make(params, prompt)

    def logits(self, row: int) -> bytes:
        """Return the logits of an output row of the batch computed last."""
        pointer = llama.llama_get_logits_ith(self._context, row)
        return ctypes.string_at(pointer, self.n_vocab * ctypes.sizeof(ctypes.c_float))

    def host_bytes(self) -> int:
        """Return how much host memory may be used for what the KV cache gives up."""
        left = cgroup.available_memory()
        return _MAX_HOST_BYTES if left is None else min(_MAX_HOST_BYTES, left // 4)

    def measure(self, clock: Callable[[], float]) -> Costs:
        """Return what a token costs here; forgets all that is in memory. Also warms up.

        Raises DecodeFailed or KVCacheFull.
        """
        rows = [Row(at % self.n_vocab, at, 0, False) for at in range(_PROBE_TOKENS)]
        prefill = min(self._seconds(rows, clock) for _ in range(2)) / _PROBE_TOKENS
        state = self.memory.save(0)
        if state is None or not self.shares_cells:
            self.memory.clear()
            return Costs(0.0, 0.0, prefill)
        row = [Row(0, _PROBE_TOKENS, 0, True)]
        alone = min(self._seconds(row, clock) for _ in range(_PROBE_ROUNDS))
        room = min(_PROBE_CELLS, self.num_cells // 2) // _PROBE_TOKENS
        holders = range(self.memory.first_holder, self.memory.num_ids)[:room]
        began = clock()
        for holder in holders:
            self.memory.restore(holder, state)
        num_parked = _PROBE_TOKENS * len(holders)
        restore = (clock() - began) / num_parked
        beside = min(self._seconds(row, clock) for _ in range(_PROBE_ROUNDS))
        self.memory.clear()
        return Costs(max(0.0, beside - alone) / num_parked, restore, prefill)

    def _seconds(self, rows: list[Row], clock: Callable[[], float]) -> float:
        """Return how long it takes to compute rows of sequence 0, in place of what was there."""
        if rows[0].position == 0:
            self.memory.drop(0)
        else:
            self.memory.cut(0, rows[0].position)
        began = clock()
        self.decode(rows)
        llama.llama_synchronize(self._context)
        return clock() - began

    def facts(self) -> ModelFacts:
        """Return what the server must know of the model."""
        weights, options = self._weights, self._options
        build = f"llama-cpp-python {llama.__version__}"
        model = file_hash(options.model_path)
        # which instructions are used: a portable build's logits differ from one CPU to the next
        system = llama.llama_print_system_info().decode("utf-8", "replace")
        identity = (
            f"{model}/{weights.size_bytes}/{self.n_vocab}/{build}/"
            f"{options.n_gpu_layers}/{options.n_threads}/{self.num_cells}/{options.kv_cache}/"
            f"{options.is_deterministic}/"
            f"{system}"
        )
        return ModelFacts(
            description=weights.description,
            architecture=weights.architecture,
            num_parameters=weights.num_parameters,
            size_bytes=weights.size_bytes,
            n_vocab=self.n_vocab,
            n_ctx=self.num_cells,
            n_ctx_train=weights.n_ctx_train,
            max_sequences=options.max_sequences,
            chat_template=weights.chat_template,
            bos_token=self._vocabulary.bos_text,
            eos_token=self._vocabulary.eos_text,
            fingerprint="fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12],
            build=build,
            file_hash=model,
        )

    def _make_context(self, n_ctx: int) -> Any:
        options = self._options
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = options.n_batch
        params.n_seq_max = LlamaMemory.num_batch_ids(
            options.max_sequences, self.shares_cells, self._weights.window
        )
        params.n_outputs_max = (
            params.n_seq_max
        )  # the default reserves n_ubatch times the vocabulary
        params.n_threads = params.n_threads_batch = options.n_threads
        params.kv_unified = options.kv_cache == "unified"
        if options.is_deterministic:  # attention has one kernel for this type, whatever the shape
            params.type_k = params.type_v = _BF16
        context = llama.llama_init_from_model(self._weights.handle, params)
        if not context:
            raise LoadFailed(
                "out_of_memory",
                f"llama.cpp could not set up a context of {n_ctx} tokens for "
                f"{options.max_sequences} sequences: lower --n_ctx, --max_sequences or "
                "--n_gpu_layers, or give the container more memory",
            )
        return context
