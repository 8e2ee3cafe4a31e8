"""What can be said of a text before it is tokenized: how many tokens it has, what it may cost."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

_ROUNDING = 1e-6


class PromptTooLong(Exception):
    """A text certainly has too many tokens; it was not tokenized to its end."""


class TextBounds(msgspec.Struct, frozen=True):
    """What the tokenizer's process has found out about a vocabulary.

    A text is short up to `short_bytes` bytes of which `short_specials` are among `special_starts`,
    those with which special tokens begin: any such text is tokenized within milliseconds, and
    harms nobody. No token that stands for a byte is longer than `longest_tokens` has it, in bytes.
    """

    short_bytes: int
    short_specials: int
    special_starts: bytes
    longest_tokens: list[int]

    def is_short(self, data: bytes) -> bool:
        """Whether whoever runs the model may tokenize this text beside it."""
        if len(data) > self.short_bytes:
            return False
        num_starts = len(data) - len(data.translate(None, self.special_starts))
        return num_starts <= self.short_specials

    def least_tokens(self, data: bytes) -> int:
        """Return a number of tokens that the text has at least.

        A token of n bytes stands for n bytes, none of which is in a token longer than its own
        longest: to count one part in that for each byte gives no token more than one.
        """
        counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        shares = np.array([1 / longest if longest else 0.0 for longest in self.longest_tokens])
        return int(np.ceil(float(counts @ shares) - _ROUNDING))


def longest_tokens(texts: Iterable[bytes], has_byte_names: bool) -> list[int]:
    """Return for each byte how long a token that may stand for it can be; 0: nothing is known.

    `texts` are a vocabulary's, with GPT-2's names for bytes if it `has_byte_names`. Of these, one
    that is no token by itself may be left out of a text.
    """
    names = _byte_names() if has_byte_names else {}
    longest = [0] * 256
    known = set(texts)
    seen: set[str] = set()
    for text in sorted(known, key=len, reverse=True):
        if new := set(text.decode("utf-8", "replace")) - seen:
            seen |= new
            for byte in {byte for char in new for byte in (*char.encode(), *names.get(char, b""))}:
                longest[byte] = max(longest[byte], len(text))
    for name, (byte,) in names.items():
        if name.encode() not in known:
            longest[byte] = 0
    return longest


def _byte_names() -> dict[str, bytes]:
    """Return the bytes for which GPT-2's vocabularies have characters that can be printed."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return {chr(b if b in printable else next(spare)): bytes([b]) for b in range(256)}
