"""Which prompts can be served, and the tokens of short ones. Pure over a vocabulary."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kserve_llamacpp.wire.frames import Rejected, Submit


class Vocabulary(Protocol):
    """As much of a backend as is needed to read prompts."""

    n_vocab: int
    max_length: int

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Return the token ids of a short text."""
        ...


class PromptReader:
    """Looks at prompts before they become sequences; owner: the engine."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known: list[int] | None = None  # the tokens that were looked through last

    @property
    def max_length(self) -> int:
        """The most tokens that a sequence may have."""
        return self._vocabulary.max_length

    def read_short(self, text: str, add_special: bool) -> list[int]:
        """Return the token ids of a short text."""
        return self._vocabulary.tokenize(text, add_special)

    def with_tokens(self, request: Submit, tokens: list[int]) -> Submit | Rejected:
        """Return the request with these tokens as its prompt, or why it cannot be served."""
        if not tokens:
            return Rejected(request.id, "empty_prompt", "the prompt has no tokens")
        if len(tokens) >= self.max_length:
            return self._too_long(request, str(len(tokens)))
        if len(tokens) + len(request.resume) > self.max_length and request.ended is None:
            count = f"{len(tokens)} tokens and its answer so far {len(request.resume)}"
            return self._too_long(request, count)
        if tokens is not self._known and max(tokens) >= self._vocabulary.n_vocab:
            text = f"a token id is not below the vocabulary's size, {self._vocabulary.n_vocab}"
            return Rejected(request.id, "token_out_of_range", text)
        self._known = tokens
        return msgspec.structs.replace(request, prompt=tokens)

    def too_long(self, request: Submit) -> Rejected:
        """Return why a text that certainly has too many tokens is refused."""
        return self._too_long(request, f"more than {self.max_length}")

    def _too_long(self, request: Submit, count: str) -> Rejected:
        return Rejected(
            request.id,
            "context_length",
            f"This model's maximum context length is {self.max_length} tokens. "
            f"However, your prompt has {count} tokens. "
            "Please reduce its length, and leave room for the answer.",
        )
