"""Where a text may be cut, so that tokenizing it takes a time that grows with its length only.

llama.cpp looks for each special token in each piece between two others: a text of many special
tokens costs the square of their number (88 KB took 1.7 s, 176 KB 14 s). Behind a special token
nothing of what came before matters to the tokenizer, so a text can be cut there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_SPECIALS_A_PART = 64
_SPACES = re.compile(rb"[ \t\n\v\f\r]*")


class SpecialTokens:
    """The texts that are tokens as they stand; owner: the vocabulary."""

    def __init__(self, texts: dict[bytes, bool], can_cut: bool = True) -> None:
        """`texts` tells of each special token whether it swallows the white space behind it.

        `can_cut` is false for a tokenizer that also adds something at the end.
        """
        self._swallows = texts
        self._pattern = re.compile(_pattern(texts)) if texts and can_cut else None
        self._longest = max(map(len, texts), default=0)
        self._overlap = _overlap(texts)
        self.starts = bytes(sorted({text[0] for text in texts}))

    @property
    def example(self) -> bytes:
        """One of them, the longest; empty where there is none."""
        return max(self._swallows, key=len, default=b"")

    def parts(self, data: bytes) -> Iterator[bytes]:
        """Yield a text in parts that, tokenized one by one, give the same tokens."""
        start = count = 0
        if self._pattern is not None:
            for found in self._pattern.finditer(data):
                count += 1
                if count >= _SPECIALS_A_PART and self._is_certain(found):
                    end = found.end()
                    if self._swallows[found.group()] and (spaces := _SPACES.match(data, end)):
                        end = spaces.end()
                    yield data[start:end]
                    start, count = end, 0
        if start < len(data) or start == 0:
            yield data[start:]

    def _is_certain(self, found: re.Match[bytes]) -> bool:
        """Whether no other special token has a part of one that was found, and more beside it.

        Of several in one place llama.cpp takes the longest, here it was the first.
        """
        if not self._overlap:
            return True
        start, end = found.span()
        for at in range(max(0, start - self._longest + 1), end):
            other = found.re.match(found.string, at) if at != start else None
            if other is not None and other.end() > (start if at < start else end):
                return False
        return True


def _pattern(texts: Iterable[bytes]) -> bytes:
    """Return a pattern that matches the longest of some texts, in a time that they do not grow.

    It is a tree of their beginnings: one of a thousand texts that begin alike is not sought a
    thousand times at each character that begins them.
    """
    return _branches(sorted(set(texts)))


def _branches(texts: list[bytes]) -> bytes:
    """Return a pattern of sorted texts, the longer one before its beginning."""
    if len(texts) == 1:
        return re.escape(texts[0])
    shared = _shared_length(texts[0], texts[-1])
    head, tails = re.escape(texts[0][:shared]), [text[shared:] for text in texts]
    is_optional = tails[0] == b""
    if is_optional:
        tails = tails[1:]
    branches: list[bytes] = []
    start = 0
    for at in range(1, len(tails) + 1):
        if at == len(tails) or tails[at][0] != tails[start][0]:
            branches.append(_branches(tails[start:at]))
            start = at
    return head + b"(?:" + b"|".join(branches) + b")" + (b"?" if is_optional else b"")


def _shared_length(one: bytes, other: bytes) -> int:
    """Return how long two texts are the same."""
    length = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        length += 1
    return length


def _overlap(texts: Iterable[bytes]) -> bool:
    """Whether the end of one can be the beginning of another, so that a text may have both."""
    beginnings = {text[:length] for text in texts for length in range(1, len(text))}
    return any(text[at:] in beginnings for text in texts for at in range(1, len(text)))
