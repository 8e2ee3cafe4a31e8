"""The model's vocabulary: text to tokens and back."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

from kserve_llamacpp.engine.llama.library import llama


class Vocabulary:
    """A model's tokens; owner: the backend, or the tokenizer's process."""

    def __init__(self, model: Any) -> None:
        """Read the vocabulary of a loaded model."""
        self.handle = llama.llama_model_get_vocab(model)
        self.size: int = llama.llama_vocab_n_tokens(self.handle)
        self._pieces: dict[int, bytes] = {}

    @property
    def bos_text(self) -> str:
        """The text of the token that begins a text, empty where there is none."""
        return self._special_text(llama.llama_vocab_bos(self.handle))

    @property
    def eos_text(self) -> str:
        """The text of the token that ends a text, empty where there is none."""
        return self._special_text(llama.llama_vocab_eos(self.handle))

    def tokenize(self, data: bytes, add_special: bool) -> list[int]:
        """Return the token ids of a text (in UTF-8); its special tokens are recognised.

        There are texts that end the process, and texts that take minutes.
        """
        size = len(data) + 2
        tokens = (llama.llama_token * size)()
        count = llama.llama_tokenize(self.handle, data, len(data), tokens, size, add_special, True)
        if count < 0:  # the text has more tokens than bytes; llama.cpp says how many
            size = -count
            tokens = (llama.llama_token * size)()
            count = llama.llama_tokenize(
                self.handle, data, len(data), tokens, size, add_special, True
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
        return bool(llama.llama_vocab_is_eog(self.handle, token))

    def text(self, token: int, special: bool) -> bytes:
        """Return a token's bytes; those of a control token where `special` is set."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama.llama_token_to_piece(self.handle, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _special_text(self, token: int) -> str:
        if token < 0:
            return ""
        return self.text(token, special=True).decode("utf-8", "replace")

    @cached_property
    def end_tokens(self) -> list[int]:
        """The tokens that end generation."""
        return [token for token in range(self.size) if self.is_end(token)]

    @cached_property
    def suppressed_tokens(self) -> list[int]:
        """The tokens that the model's file forbids to write."""
        count = ctypes.c_int32(0)
        tokens = llama.llama_vocab_get_suppress_tokens(self.handle, ctypes.byref(count))
        return list(tokens[: count.value]) if count.value > 0 else []
