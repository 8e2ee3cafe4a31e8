"""How many cells the KV cache gets, beside the weights, in the memory that there is."""

from __future__ import annotations

from dataclasses import dataclass

from kserve_llamacpp.engine.llama.library import LoadFailed
from kserve_llamacpp.wire.cells import BLOCK, whole_parts

_GIB = 1 << 30
_RESERVE_BYTES = 256 << 20  # compute buffers (132 MiB for a 7B model), logits, Python
# The tokenizer's process: 41 MB with a vocabulary of 49,000, 150 MB with one of 262,000.
_TOKENIZER_BYTES = 16 << 20
_TOKENIZER_BYTES_A_TOKEN = 512
_MIN_CTX = 512
_DEFAULT_MAX_CTX = 16384


@dataclass(frozen=True)
class Memory:
    """What the weights and one cell take, in bytes; `available` is None where nothing bounds it.

    `n_vocab` is the number of tokens in the vocabulary, which the tokenizer's process has, too.
    """

    weights: int
    per_cell: int
    available: int | None
    n_vocab: int = 0

    @property
    def room(self) -> int | None:
        """The bytes that are left for cells."""
        if self.available is None:
            return None
        return self.available - self.weights - self.reserve

    @property
    def reserve(self) -> int:
        """The bytes that are kept for all but weights and cells."""
        return _RESERVE_BYTES + _TOKENIZER_BYTES + _TOKENIZER_BYTES_A_TOKEN * self.n_vocab


def choose_n_ctx(asked: int, most_useful: int, memory: Memory, num_parts: int = 1) -> int:
    """Return the number of cells: those asked for, or (0) as many as are useful and fit.

    These are what llama.cpp makes of them when it divides them into so many parts.
    Raises LoadFailed, with the figures, when they do not fit.
    """
    room = memory.room
    if asked:
        if room is not None and asked * memory.per_cell > room:
            raise _does_not_fit(asked, memory, room, num_parts)
        return asked
    least = whole_parts(_MIN_CTX, num_parts)
    n_ctx = max(least, whole_parts(min(_DEFAULT_MAX_CTX, most_useful), num_parts))
    while room is not None and n_ctx * memory.per_cell > room:
        if n_ctx == least:
            raise _does_not_fit(least, memory, room, num_parts)
        n_ctx = max(least, whole_parts(n_ctx // 2, num_parts))
    return n_ctx


def _does_not_fit(n_ctx: int, memory: Memory, room: int, num_parts: int) -> LoadFailed:
    weights = memory.weights / _GIB
    cells = n_ctx * memory.per_cell / _GIB
    available = (room + memory.reserve) / _GIB + weights
    fitting = max(0, room // memory.per_cell)
    if fitting >= max(_MIN_CTX, num_parts * BLOCK):
        mend = f"lower --n_ctx to {fitting} or less, or give the container more memory"
    elif fitting >= _MIN_CTX:
        mend = "lower --max_sequences, or give the container more memory"
    else:
        mend = "give the container more memory, or choose a smaller model or quantisation"
    return LoadFailed(
        "out_of_memory",
        f"the model needs {weights:.2f} GiB for its weights and {cells:.2f} GiB for a KV cache "
        f"of {n_ctx} tokens, but only {available:.2f} GiB are available: {mend}",
    )
