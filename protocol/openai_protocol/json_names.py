"""Whether an object of a JSON text has two fields of one name, told by its bytes. Pure.

A parser keeps one of them and says nothing. To call Python for each pair costs a second for a list
of millions of tokens; here only names and brackets cost.
"""

from __future__ import annotations

import json
import re

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
    open_names: list[set[str]] = []  # of each list and object around the place
    for at in range(0, len(pieces) - 1, 2):
        for bracket in _BRACKETS.findall(pieces[at]):
            if bracket in b"[{":
                open_names.append(set())
            elif open_names:
                open_names.pop()
        is_name = pieces[at + 2].lstrip(b" \t\r\n").startswith(b":") if at + 2 < len(pieces) else 0
        if is_name and 0 < len(open_names) <= depth:
            name = _text(pieces[at + 1])
            if name in open_names[-1]:
                return name
            open_names[-1].add(name)
    return None


def _text(quoted: bytes) -> str:
    """Return the text that stands between two quotes."""
    if b"\\" not in quoted:
        return quoted.decode(errors="replace")
    text: str = json.loads(b'"' + quoted + b'"')
    return text
