"""The penalties on tokens that were seen before, on the logits of the whole vocabulary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kserve_llamacpp.engine.frames import SamplingParams

_FIRST_ROOM = 64
_HIGHEST_LOGIT = np.float32(1e30)  # divided by a tiny penalty, a logit would become infinite


class TokenCounts:
    """How often each token was seen, as arrays to index logits with; owner: a sampler's penalties.

    Invariant: the first `_size` of `_ids` are distinct, and `_places` tells where each stands.
    """

    def __init__(self, tokens: list[int]) -> None:
        ids, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
        self._size = len(ids)
        self._ids = np.resize(ids, self._size + _FIRST_ROOM)
        self._counts = np.resize(counts.astype(np.float32), self._size + _FIRST_ROOM)
        self._places = {token: place for place, token in enumerate(ids.tolist())}

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The tokens that were seen, valid until the next `add`."""
        return self._ids[: self._size]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """How often each of `ids` was seen, valid until the next `add`."""
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        """Count a token."""
        place = self._places.setdefault(token, self._size)
        if place < self._size:
            self._counts[place] += 1
            return
        if place == len(self._ids):
            self._ids = np.resize(self._ids, 2 * place)
            self._counts = np.resize(self._counts, 2 * place)
        self._ids[place] = token
        self._counts[place] = 1
        self._size += 1


class Penalties:
    """Repetition counts prompt and output; presence and frequency count the output alone.

    So OpenAI and vLLM define them; owner: a sampler.
    """

    def __init__(self, params: SamplingParams, prompt: list[int]) -> None:
        self._repetition = np.float32(params.repetition_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._seen = TokenCounts(prompt) if self._repetition != 1 else None
        self._written = TokenCounts([]) if self._presence or self._frequency else None

    @property
    def is_neutral(self) -> bool:
        """Whether they change nothing."""
        return self._seen is None and self._written is None

    def accept(self, token: int) -> None:
        """Count a token that was generated."""
        if self._seen is not None:
            self._seen.add(token)
        if self._written is not None:
            self._written.add(token)

    def apply(self, logits: npt.NDArray[np.float32]) -> None:
        """Change the logits of the tokens that were seen, in place."""
        if self._seen is not None:
            ids = self._seen.ids
            found = logits[ids]
            # a negative logit is multiplied: divided, the token would become likelier
            with np.errstate(over="ignore"):
                found = np.where(found <= 0, found * self._repetition, found / self._repetition)
            logits[ids] = np.minimum(found, _HIGHEST_LOGIT)
        if self._written is not None:
            counts = self._written.counts
            logits[self._written.ids] -= counts * self._frequency + self._presence
