"""The penalties on tokens that were seen before, on the logits of the whole vocabulary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kserve_llamacpp.wire.frames import SamplingParams

_FIRST_ROOM = 64
_HIGHEST_LOGIT = np.float32(1e30)  # divided by a tiny penalty, a logit would become infinite


class TokenCounts:
    """How often each token was seen, as arrays to index logits with; owner: a sampler's penalties.

    Invariant: the first `_size` of `_ids` are distinct, and `_places` tells where each stands.
    """

    def __init__(self) -> None:
        self._size = 0
        self._ids = np.zeros(_FIRST_ROOM, np.int64)
        self._counts = np.zeros(_FIRST_ROOM, np.float32)
        self._places: dict[int, int] = {}

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

    So OpenAI and vLLM define them; owner: a sampler. The prompt is read when a first token is
    drawn: whoever makes a sampler holds up all that is being decoded.
    """

    def __init__(self, params: SamplingParams, prompt: list[int]) -> None:
        self._repetition = np.float32(params.repetition_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._prompt = prompt
        self._written = TokenCounts()
        self._is_in_prompt: npt.NDArray[np.bool_] | None = None  # by token; None: not read yet
        self._prompt_ids: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def is_neutral(self) -> bool:
        """Whether they change nothing."""
        return bool(self._repetition == 1 and not self._presence and not self._frequency)

    def accept(self, token: int) -> None:
        """Count a token that was generated."""
        if not self.is_neutral:
            self._written.add(token)

    def apply(self, logits: npt.NDArray[np.float32]) -> None:
        """Change the logits of the tokens that were seen, in place."""
        if self._repetition != 1:
            ids = self._seen(len(logits))
            found = logits[ids]
            # a negative logit is multiplied: divided, the token would become likelier
            with np.errstate(over="ignore"):
                found = np.where(found <= 0, found * self._repetition, found / self._repetition)
            logits[ids] = np.minimum(found, _HIGHEST_LOGIT)
        if self._presence or self._frequency:
            counts = self._written.counts
            logits[self._written.ids] -= counts * self._frequency + self._presence

    def _seen(self, num_tokens: int) -> npt.NDArray[np.int64]:
        """Return what prompt and output have, each token once, of so many that there are."""
        if self._is_in_prompt is None:
            self._is_in_prompt = np.zeros(num_tokens, np.bool_)
            self._is_in_prompt[np.fromiter(self._prompt, np.int64, len(self._prompt))] = True
            self._prompt_ids = np.flatnonzero(self._is_in_prompt)
            self._prompt = []
        written = self._written.ids
        return np.concatenate([self._prompt_ids, written[~self._is_in_prompt[written]]])
