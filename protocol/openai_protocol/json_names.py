"""Whether an object of a JSON text has two fields of one name, told by its bytes. Pure.

A parser keeps one of them and says nothing. To call Python for each pair costs a second for a list
of millions of tokens; here only names and brackets cost.
"""

from __future__ import annotations

import json
import re

_SPACES = b" \t\r\n"
_BRACKETS = re.compile(rb"[\[\]{}]")
_ESCAPED_BACKSLASH = rb"\u005c"
_ESCAPED_QUOTE = rb"\u0022"


def repeated_name(body: bytes, depth: int = 1) -> str | None:
    """Return the first name that an object gives twice; None where there is none.

    `body` is valid JSON. Objects count down to `depth` levels of lists and objects; 1 is the
    outermost one alone.
    """
    if b"\\" in body:  # each quote that is left begins or ends a text
        body = body.replace(b"\\\\", _ESCAPED_BACKSLASH).replace(b'\\"', _ESCAPED_QUOTE)
    pieces = body.split(b'"')
    open_names: list[set[bytes]] = []  # of each list and object around the place
    names: set[bytes] = set()  # of the innermost one
    is_deep = True
    for between, text, after in zip(pieces[::2], pieces[1::2], pieces[2::2], strict=False):
        if _has_bracket(between):
            for bracket in _BRACKETS.findall(between):
                if bracket in b"[{":
                    open_names.append(set())
                elif open_names:
                    open_names.pop()
            names = open_names[-1] if open_names else set()
            is_deep = len(open_names) > depth
        if is_deep or not (after[:1] == b":" or after.lstrip(_SPACES)[:1] == b":"):
            continue
        name = _decoded(text) if b"\\" in text else text
        if name in names:
            return name.decode(errors="replace")
        names.add(name)
    return None


def _has_bracket(piece: bytes) -> bool:
    return b"{" in piece or b"}" in piece or b"[" in piece or b"]" in piece


def _decoded(text: bytes) -> bytes:
    """Return a text as a parser reads it, in the form of those without escapes."""
    return str(json.loads(b'"' + text + b'"')).encode("utf-8", "surrogatepass")
