"""The engine's backend over llama.cpp: a model, its context, its memory."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from http_edge import cgroup
from kserve_llamacpp.engine.backend import Row
from kserve_llamacpp.engine.cache.costs import Costs
from kserve_llamacpp.engine.llama.context import Room, Shape
from kserve_llamacpp.engine.llama.contexts import TwoRooms
from kserve_llamacpp.engine.llama.file_hash import file_hash
from kserve_llamacpp.engine.llama.layout import choose_layout
from kserve_llamacpp.engine.llama.library import llama, start_library
from kserve_llamacpp.engine.llama.memory import LlamaMemory
from kserve_llamacpp.engine.llama.sampler import LlamaSampler, Samplers
from kserve_llamacpp.engine.llama.sizing import Memory, choose_n_ctx
from kserve_llamacpp.engine.llama.vocabulary import Vocabulary
from kserve_llamacpp.engine.llama.weights import Weights
from kserve_llamacpp.wire.frames import ModelFacts, SamplingParams
from kserve_llamacpp.wire.worker_options import FlashAttention, KVCacheLayout

_BYTES_PER_VALUE = 2  # F16, BF16
_TILED_ROWS = 64  # from so many rows on, flash attention on the CPU looks at 16 rows' cells at once
_PLAIN_ROWS = 128  # plain attention takes memory for each pair of row and cell; more gain nothing
_BYTES_PER_SCORE = 6  # F32, and F16 beside it
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
    kv_cache: KVCacheLayout = "auto"
    is_deterministic: bool = False
    flash_attn: FlashAttention = "auto"


class LlamaBackend:
    """One model and its context; owner: the engine process, one thread.

    `num_cells` is what sequences together can have in the part of the KV cache that they share;
    `own_length` what each slot has to itself, 0 where all is shared; `shares_cells` whether
    sequences can share cells; `can_cut` whether a sequence can go back to an earlier token;
    `has_window` whether some layers look at the latest tokens only.
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
        self._offloads = bool(llama.llama_supports_gpu_offload()) and options.n_gpu_layers != 0
        self._flash_attention = self._choose_attention()
        self.can_cut = not self._weights.is_recurrent
        self.has_window = self._weights.window > 0
        self._layout = choose_layout(
            options.kv_cache,
            self._choose_n_ctx(available),
            options.max_sequences,
            self._weights.n_ctx_train,
            can_move=self.can_cut and not self.has_window,
            pays_for_others=self._is_plain_on_cpu,
        )
        can_park = LlamaMemory.can_park(options.max_sequences, self._weights.window)
        self.shares_cells = self._layout.kind == "unified" and self.can_cut and can_park
        rooms = self._make_rooms()
        self._room = TwoRooms(*rooms) if len(rooms) > 1 else rooms[0]
        self.memory = self._room.memory
        self.n_vocab: int = self._vocabulary.size
        self.own_length = self._layout.own_length
        self.num_cells: int = rooms[-1].num_cells
        self.max_length: int = min(rooms[-1].longest, self._weights.n_ctx_train)
        if not self._weights.has_cells:
            self.num_cells = options.max_sequences * self.max_length
        self.max_mixed_rows = options.n_batch
        if not self._offloads and not self._is_plain_on_cpu:
            self.max_mixed_rows = min(options.n_batch, _TILED_ROWS - 1)
        self._samplers = Samplers(self._room.logits, self._vocabulary, self.max_length)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Return the token ids of a text; its special tokens are recognised.

        Only for texts of which `TextBounds` says that they are short.
        """
        return self._vocabulary.tokenize(text.encode("utf-8", "replace"), add_special)

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
        self._room.decode(rows)

    def sampler(self, params: SamplingParams, prompt: list[int]) -> LlamaSampler:
        """Make a sampler that draws from the batch computed last."""
        return self._samplers.make(params, prompt)

    def logits(self, row: int) -> bytes:
        """Return the logits of an output row of the batch computed last."""
        return ctypes.string_at(
            self._room.logits(row), self.n_vocab * ctypes.sizeof(ctypes.c_float)
        )

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
        self._room.synchronize()
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
            f"{options.n_gpu_layers}/{options.n_threads}/{self._layout}/"
            f"{self._flash_attention}/{options.is_deterministic}/"
            f"{system}"
        )
        return ModelFacts(
            description=weights.description,
            architecture=weights.architecture,
            num_parameters=weights.num_parameters,
            size_bytes=weights.size_bytes,
            n_vocab=self.n_vocab,
            n_ctx=self.num_cells + self.own_length * options.max_sequences,
            n_ctx_train=weights.n_ctx_train,
            max_sequences=options.max_sequences,
            chat_template=weights.chat_template,
            bos_token=self._vocabulary.bos_text,
            eos_token=self._vocabulary.eos_text,
            fingerprint="fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12],
            build=build,
            file_hash=model,
        )

    def _choose_attention(self) -> bool | None:
        """Whether attention is llama.cpp's flash attention; None: where it has one for the device.

        On a CPU that is several times slower behind long contexts than the plain one, but the one
        that gives the same bits in any company.
        """
        options = self._options
        if options.flash_attn != "auto":
            return options.flash_attn == "on"
        return None if self._offloads or options.is_deterministic else False

    @property
    def _is_plain_on_cpu(self) -> bool:
        return not self._offloads and self._flash_attention is False

    @property
    def _n_ubatch(self) -> int:
        """How many rows llama.cpp computes at once."""
        n_batch = self._options.n_batch
        return min(n_batch, _PLAIN_ROWS) if self._is_plain_on_cpu else n_batch

    def _choose_n_ctx(self, available: int | None) -> int:
        options, weights = self._options, self._weights
        num_parts = options.max_sequences if options.kv_cache == "split" else 1
        cell = per_cell = weights.values_per_cell() * _BYTES_PER_VALUE
        if self._flash_attention is False:
            per_cell += weights.num_heads * self._n_ubatch * _BYTES_PER_SCORE // num_parts
        if options.kv_cache in ("auto", "split+pool"):  # a copy of a slot's cells, when they move
            per_cell += cell // (2 * options.max_sequences)
        return choose_n_ctx(
            options.n_ctx,
            weights.n_ctx_train * options.max_sequences,
            Memory(
                weights=weights.size_bytes,
                per_cell=per_cell,
                available=None if self._offloads else available,
                n_vocab=self._vocabulary.size,
            ),
            num_parts,
        )

    def _make_rooms(self) -> list[Room]:
        options, layout = self._options, self._layout
        shape = Shape(
            num_cells=layout.num_pooled,
            num_slots=options.max_sequences,
            is_unified=layout.kind != "split",
            can_park=self.shares_cells,
            n_batch=options.n_batch,
            n_ubatch=self._n_ubatch,
            n_threads=options.n_threads,
            is_deterministic=options.is_deterministic,
            has_flash_attention=self._flash_attention,
        )
        shapes = [shape]
        if layout.own_length:
            own_cells = layout.own_length * options.max_sequences
            shapes.insert(0, replace(shape, num_cells=own_cells, is_unified=False))
        return [Room(self._weights, shape) for shape in shapes]
