"""How many values a JSON text has and how deep they are nested, told by its bytes alone. Pure.

A parser takes a microsecond or more for each list, and the event loop waits: eight megabytes of
brackets would hold up everybody for seconds. To count bytes takes a hundredth of that, and a long
text or picture is one value however long it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MAX_JSON_DEPTH = 64
# 4,096 messages of two parts each have some 60,000.
MAX_JSON_VALUES = 64 * 1024
# Lists of tokens are the one honest reason for many values; a number costs the least of all.
NUMBERS_PER_VALUE = 20

_NO_SIGNS = bytes(set(range(256)) - set(b'[{,"'))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_LISTS = bytes.maketrans(b"{}", b"[]")


class Shape(NamedTuple):
    """What a JSON text has too much of; of what is no JSON, either may be said."""

    is_too_long: bool
    is_too_deep: bool


_GOOD = Shape(is_too_long=False, is_too_deep=False)


@dataclass(frozen=True, slots=True)
class ShapeLimits:
    """How many values a JSON text may have, and how deep they may stand in each other.

    `max_values` counts lists, objects and texts, keys among them; of all values there may be
    NUMBERS_PER_VALUE times as many.
    """

    max_values: int
    max_depth: int

    def look_at(self, body: bytes) -> Shape:
        """Tell what a JSON text has too much of."""
        signs = body.translate(None, _NO_SIGNS)
        num_lists = _count_lists(signs)
        if num_lists <= self.max_depth and self._has_room(num_lists, signs):
            return _GOOD  # even if no text has any of them
        parsed = _without_escapes(body)
        if parsed.count(b'"') // 2 > self.max_values:
            return Shape(is_too_long=True, is_too_deep=False)
        bare = b'""'.join(parsed.split(b'"')[::2])
        num_lists = _count_lists(bare)
        if not self._has_room(num_lists, bare):
            return Shape(is_too_long=True, is_too_deep=False)
        is_too_deep = num_lists > self.max_depth and self._is_too_deep(bare)
        return Shape(is_too_long=False, is_too_deep=is_too_deep)

    def _has_room(self, num_lists: int, signs: bytes) -> bool:
        if len(signs) <= self.max_values:
            return True
        num_values = num_lists + signs.count(b'"') // 2
        num_commas = signs.count(b",")
        return num_values <= self.max_values and num_commas <= self.max_values * NUMBERS_PER_VALUE

    def _is_too_deep(self, bare: bytes) -> bool:
        brackets = bare.translate(_AS_LISTS, _NO_BRACKETS)
        for _ in range(self.max_depth):
            brackets = brackets.replace(b"[]", b"")  # the innermost ones
        return bool(brackets)


def _count_lists(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _without_escapes(body: bytes) -> bytes:
    """Return the text without escaped quotes: each quote that is left begins or ends a text."""
    if b"\\" not in body:
        return body
    return body.replace(b"\\\\", b"").replace(b'\\"', b"")
