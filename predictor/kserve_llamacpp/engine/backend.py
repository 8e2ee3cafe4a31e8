"""What the engine asks of a model, and how that may fail; the real one is in `llama`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kserve_llamacpp.engine.sequence import Sampler
from kserve_llamacpp.wire.frames import SamplingParams


class KVCacheFull(Exception):
    """llama.cpp found no cells for a batch; the cache is as it was before."""


class DecodeFailed(Exception):
    """A batch failed inside llama.cpp; a part of it may be in the cache, its logits are lost."""


class LogitsNotFinite(Exception):
    """The model computed NaN or infinity for a row; its sequence fails alone."""


@dataclass(frozen=True)
class Row:
    """One token of a batch: where it goes, and whether its logits are wanted."""

    token: int
    position: int
    slot: int
    is_output: bool


class Backend(Protocol):
    """What the engine asks of a model; the real one is `LlamaBackend`."""

    n_vocab: int
    max_length: int  # the most tokens that one sequence may have, prompt included
    max_mixed_rows: int  # the largest batch in which decode and prefill are better off together

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Return the token ids of a short text; its special tokens are recognised."""
        ...

    def piece(self, token: int) -> bytes:
        """Return a token's bytes; none for a control token."""
        ...

    def special_piece(self, token: int) -> bytes:
        """Return a token's bytes, those of a control token, too."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the token ends generation."""
        ...

    def decode(self, rows: list[Row]) -> None:
        """Compute a batch; raises KVCacheFull or DecodeFailed."""
        ...

    def sampler(self, params: SamplingParams, prompt: list[int]) -> Sampler:
        """Make a sampler that draws from the batch computed last."""
        ...
