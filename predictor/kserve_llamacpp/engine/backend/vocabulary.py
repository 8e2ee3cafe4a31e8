"""The model's vocabulary: text to tokens and back."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

from kserve_llamacpp.engine.backend.library import llama
from kserve_llamacpp.engine.engine import PromptTooLong
from kserve_llamacpp.engine.special_tokens import SpecialTokens

_SPECIAL = llama.LLAMA_TOKEN_ATTR_UNKNOWN | llama.LLAMA_TOKEN_ATTR_CONTROL
_SPECIAL |= llama.LLAMA_TOKEN_ATTR_USER_DEFINED
_RSTRIP = llama.LLAMA_TOKEN_ATTR_RSTRIP


class Vocabulary:
    """A model's tokens; owner: the backend. Only `tokenize` may be called in another thread."""

    def __init__(self, model: Any) -> None:
        """Read the vocabulary of a loaded model."""
        self._handle = llama.llama_model_get_vocab(model)
        self.size: int = llama.llama_vocab_n_tokens(self._handle)
        self._pieces: dict[int, bytes] = {}
        self._specials = self._read_specials()

    @property
    def bos_text(self) -> str:
        """The text of the token that begins a text, empty where there is none."""
        return self._special_text(llama.llama_vocab_bos(self._handle))

    @property
    def eos_text(self) -> str:
        """The text of the token that ends a text, empty where there is none."""
        return self._special_text(llama.llama_vocab_eos(self._handle))

    def tokenize(self, text: str, add_special: bool, longest: int) -> list[int]:
        """Return the token ids of a text; its special tokens are recognised.

        Raises PromptTooLong as soon as it is certain that there are more than `longest`. May be
        called in another thread.
        """
        data = text.encode("utf-8", "replace")
        if len(data) > longest * self._specials.longest_text:
            raise PromptTooLong
        tokens: list[int] = []
        for part in self._specials.parts(data):
            tokens += self._tokenize(part, add_special and not tokens)
            if len(tokens) > longest:
                raise PromptTooLong
        return tokens

    def _tokenize(self, data: bytes, add_special: bool) -> list[int]:
        size = len(data) + 2
        tokens = (llama.llama_token * size)()
        count = llama.llama_tokenize(self._handle, data, len(data), tokens, size, add_special, True)
        if count < 0:  # the text has more tokens than bytes; llama.cpp says how many
            size = -count
            tokens = (llama.llama_token * size)()
            count = llama.llama_tokenize(
                self._handle, data, len(data), tokens, size, add_special, True
            )
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """Return a token's bytes; none for a control token."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.text(token, special=False)
        return piece

    def is_end(self, token: int) -> bool:
        """Whether the token ends generation."""
        return bool(llama.llama_vocab_is_eog(self._handle, token))

    def text(self, token: int, special: bool) -> bytes:
        """Return a token's bytes; those of a control token where `special` is set."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama.llama_token_to_piece(self._handle, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _special_text(self, token: int) -> str:
        if token < 0:
            return ""
        return self.text(token, special=True).decode("utf-8", "replace")

    def _read_specials(self) -> SpecialTokens:
        longest = 1
        texts: list[tuple[bytes, bool]] = []
        for token in range(self.size):
            text = llama.llama_vocab_get_text(self._handle, token) or b""
            longest = max(longest, len(text))
            attributes = llama.llama_vocab_get_attr(self._handle, token)
            if text and attributes & _SPECIAL:
                texts.append((text, bool(attributes & _RSTRIP)))
        adds_end = llama.llama_vocab_get_add_eos(self._handle)
        adds_end |= llama.llama_vocab_get_add_sep(self._handle)
        return SpecialTokens(dict(texts), longest, can_cut=not adds_end)

    @cached_property
    def end_tokens(self) -> list[int]:
        """The tokens that end generation."""
        return [token for token in range(self.size) if self.is_end(token)]

    @cached_property
    def suppressed_tokens(self) -> list[int]:
        """The tokens that the model's file forbids to write."""
        count = ctypes.c_int32(0)
        tokens = llama.llama_vocab_get_suppress_tokens(self._handle, ctypes.byref(count))
        return list(tokens[: count.value]) if count.value > 0 else []
