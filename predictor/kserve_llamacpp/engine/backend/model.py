"""The engine's backend over llama.cpp: a model, its context, its memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_llamacpp import cgroup
from kserve_llamacpp.engine.backend.batch import Batch
from kserve_llamacpp.engine.backend.library import LoadFailed, llama, start_library
from kserve_llamacpp.engine.backend.sampler import LlamaSampler
from kserve_llamacpp.engine.backend.sizing import Memory, choose_n_ctx
from kserve_llamacpp.engine.backend.vocabulary import Vocabulary
from kserve_llamacpp.engine.backend.weights import Weights
from kserve_llamacpp.engine.engine import DecodeFailed, KVCacheFull, Row
from kserve_llamacpp.engine.frames import ModelFacts, SamplingParams

_BYTES_PER_VALUE = 2  # F16


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
        self._library = start_library(on_log)  # kept: llama.cpp holds bare pointers into it
        # Asked before the weights are there, of which llama.cpp copies most for the CPU: afterwards
        # they would count twice.
        available = cgroup.available_memory()
        self._weights = Weights(options.model_path, options.n_gpu_layers, on_progress)
        self._vocabulary = Vocabulary(self._weights.handle)
        offloads = llama.llama_supports_gpu_offload() and options.n_gpu_layers != 0
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
        self._memory = llama.llama_get_memory(self._context)
        self.n_vocab: int = self._vocabulary.size
        self.n_ctx: int = llama.llama_n_ctx(self._context)
        self.max_length: int = min(self.n_ctx, self._weights.n_ctx_train)
        self._batch = Batch(options.n_batch)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Return the token ids of a text; its special tokens are recognised.

        Raises PromptTooLong, as soon as that is certain. May be called in another thread.
        """
        return self._vocabulary.tokenize(text, add_special, self.max_length)

    def piece(self, token: int) -> bytes:
        """Return a token's bytes; none for a control token."""
        return self._vocabulary.piece(token)

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
        biases = dict(params.logit_bias)
        if params.ignore_eos:
            biases |= dict.fromkeys(self._vocabulary.end_tokens, -math.inf)
        return LlamaSampler(self._context, self.n_vocab, self.max_length, params, biases, prompt)

    def drop(self, slot: int) -> None:
        """Free all cells of a slot."""
        llama.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def facts(self) -> ModelFacts:
        """Return what the server must know of the model."""
        weights, options = self._weights, self._options
        build = f"llama-cpp-python {llama.__version__}"
        # which instructions are used: a portable build's logits differ from one CPU to the next
        system = llama.llama_print_system_info().decode("utf-8", "replace")
        identity = (
            f"{options.model_path.name}/{weights.size_bytes}/{self.n_vocab}/{build}/"
            f"{options.n_gpu_layers}/{options.n_threads}/{self.n_ctx}/{system}"
        )
        return ModelFacts(
            description=weights.description,
            architecture=weights.architecture,
            num_parameters=weights.num_parameters,
            size_bytes=weights.size_bytes,
            n_vocab=self.n_vocab,
            n_ctx=self.n_ctx,
            n_ctx_train=weights.n_ctx_train,
            max_sequences=options.max_sequences,
            chat_template=weights.chat_template,
            bos_token=self._vocabulary.bos_text,
            eos_token=self._vocabulary.eos_text,
            fingerprint="fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12],
            build=build,
        )

    def _make_context(self, n_ctx: int) -> Any:
        options = self._options
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = options.n_batch
        params.n_seq_max = options.max_sequences
        params.n_outputs_max = options.max_sequences
        params.n_threads = params.n_threads_batch = options.n_threads
        params.kv_unified = True
        context = llama.llama_init_from_model(self._weights.handle, params)
        if not context:
            raise LoadFailed(
                "out_of_memory",
                f"llama.cpp could not set up a context of {n_ctx} tokens for "
                f"{options.max_sequences} sequences: lower --n_ctx, --max_sequences or "
                "--n_gpu_layers, or give the container more memory",
            )
        return context
