"""A model's vocabulary without its weights: what the tokenizer's process reads texts with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from kserve_llamacpp.engine.llama.library import LoadFailed, llama, start_library
from kserve_llamacpp.engine.llama.vocabulary import Vocabulary
from kserve_llamacpp.engine.llama.weights import meta
from kserve_llamacpp.engine.text.special_tokens import SpecialTokens
from kserve_llamacpp.engine.text.text_bounds import PromptTooLong, longest_tokens

_SPECIAL = llama.LLAMA_TOKEN_ATTR_UNKNOWN | llama.LLAMA_TOKEN_ATTR_CONTROL
_SPECIAL |= llama.LLAMA_TOKEN_ATTR_USER_DEFINED
_RSTRIP = llama.LLAMA_TOKEN_ATTR_RSTRIP
_STRIPS = _RSTRIP | llama.LLAMA_TOKEN_ATTR_LSTRIP
_SPACES = b" \t\n\v\f\r"
# of BPE: those that have no names for bytes, and tokens for those that have none else
_BYTE_TOKENS = frozenset({"gemma4", "granite-embed-multi-311m", "sarvam-moe"})
_ENDS_AT_SPACES = "whitespace"  # llama.cpp ends the process where a word has one
_NUM_BYTES = 256


class VocabularyFile:
    """A model's file, of which the vocabulary alone was loaded; owner: the tokenizer's process."""

    def __init__(self, path: Path, on_log: Callable[[str, str], None]) -> None:
        """Load it; `on_log` gets a level and a line. Raises LoadFailed."""
        self._library = start_library(on_log)  # kept: llama.cpp holds bare pointers into it
        params: Any = llama.llama_model_default_params()
        params.vocab_only = True
        params.n_gpu_layers = 0
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise LoadFailed("model_file", f"llama.cpp cannot read the vocabulary of {path}")
        self._vocabulary = Vocabulary(self._model)
        self._read_tokens()

    def tokenize(self, text: bytes, add_special: bool, longest: int) -> list[int]:
        """Return the token ids of a text (in UTF-8); its special tokens are recognised.

        Raises PromptTooLong as soon as it is certain that there are more than `longest`.
        """
        tokens: list[int] = []
        for part in self.specials.parts(text):
            tokens += self._vocabulary.tokenize(part, add_special and not tokens)
            if len(tokens) > longest:
                raise PromptTooLong
        return tokens

    @cached_property
    def is_plain(self) -> bool:
        """Whether no short text harms: known of the usual kinds of vocabularies."""
        if self._has_byte_names:
            return meta(self._model, "tokenizer.ggml.pre") != _ENDS_AT_SPACES
        is_usual = self._kind in (llama.LLAMA_VOCAB_TYPE_SPM, llama.LLAMA_VOCAB_TYPE_BPE)
        return is_usual and self._num_byte_tokens == _NUM_BYTES

    @property
    def _has_byte_names(self) -> bool:
        """Whether bytes have GPT-2's names in the tokens."""
        return (
            self._kind == llama.LLAMA_VOCAB_TYPE_BPE
            and meta(self._model, "tokenizer.ggml.model") == "gpt2"
            and meta(self._model, "tokenizer.ggml.pre") not in _BYTE_TOKENS
        )

    def longest_tokens(self) -> list[int]:
        """Return for each byte how long a token that may stand for it can be; 0: not known."""
        if not self.is_plain:
            return [0] * _NUM_BYTES
        longest = longest_tokens(self._texts, self._has_byte_names)
        if self._strips:  # tokens that swallow white space beside them
            for byte in _SPACES:
                longest[byte] = 0
        return longest

    def _read_tokens(self) -> None:
        handle = self._vocabulary.handle
        self._kind: int = llama.llama_vocab_type(handle)
        self._texts: list[bytes] = []
        self._num_byte_tokens = 0
        self._strips = False
        specials: dict[bytes, bool] = {}
        for token in range(self._vocabulary.size):
            text = llama.llama_vocab_get_text(handle, token) or b""
            self._texts.append(text)
            attributes = llama.llama_vocab_get_attr(handle, token)
            self._num_byte_tokens += bool(attributes & llama.LLAMA_TOKEN_ATTR_BYTE)
            if text and attributes & _SPECIAL:
                specials[text] = bool(attributes & _RSTRIP)
                self._strips |= bool(attributes & _STRIPS)
        adds_end = llama.llama_vocab_get_add_eos(handle)
        adds_end |= llama.llama_vocab_get_add_sep(handle)
        self.specials = SpecialTokens(specials, can_cut=not adds_end)
