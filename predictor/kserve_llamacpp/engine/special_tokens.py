"""Where a text may be cut, so that tokenizing it takes a time that grows with its length only.

llama.cpp looks for each special token in each piece between two others: a text of many special
tokens costs the square of their number (88 KB took 1.7 s, 176 KB 14 s). Behind a special token
nothing of what came before matters to the tokenizer, so a text can be cut there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SPECIALS_A_PART = 64
_SPACES = re.compile(rb"[ \t\n\v\f\r]*")


class SpecialTokens:
    """The texts that are tokens as they stand; owner: the backend."""

    def __init__(self, texts: dict[bytes, bool], longest_text: int, can_cut: bool = True) -> None:
        """`texts` tells of each special token whether it swallows the white space behind it.

        `longest_text` is the length of the vocabulary's longest token, in bytes: no token stands
        for more. `can_cut` is false for a tokenizer that also adds something at the end.
        """
        self.longest_text = longest_text
        self._swallows = texts
        longest_first = sorted(texts, key=len, reverse=True)
        pattern = b"|".join(re.escape(text) for text in longest_first)
        self._pattern = re.compile(pattern) if pattern and can_cut else None

    def parts(self, data: bytes) -> Iterator[bytes]:
        """Yield a text in parts that, tokenized one by one, give the same tokens."""
        start = 0
        if self._pattern is not None:
            for count, found in enumerate(self._pattern.finditer(data), 1):
                if count % _SPECIALS_A_PART == 0:
                    end = found.end()
                    if self._swallows[found.group()] and (spaces := _SPACES.match(data, end)):
                        end = spaces.end()
                    yield data[start:end]
                    start = end
        if start < len(data) or start == 0:
            yield data[start:]
