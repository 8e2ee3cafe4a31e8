"""A request's path as every layer sees it: routes, access rules, logs; pure.

    /v1/models/a%2Fb    one part, the name a/b: an encoded slash is data, it separates nothing
    /v1%2Fmodels        one part: no such path
    /v1/../metrics      no such path, and neither are /v1/%2e%2e/metrics and /v1//metrics

Such a path is refused instead of resolved: what stands in front of the server may have looked at it
as it was written, and passed it for another path than the resolved one.
"""

from __future__ import annotations

from urllib.parse import unquote

# What stays encoded, so that a part of a path can be decoded once more without a doubt.
_KEPT = {"%": "%25", "/": "%2F"}
_DOTS = frozenset({".", ".."})


def normalized(raw_path: bytes) -> str | None:
    """Return a path with every part decoded, but for `%` and `/` in it; None for no such path.

    `part` gives what such a part means. The last part may be empty.
    """
    text = raw_path.decode("ascii", "replace")
    if "%" not in text and "//" not in text and "/." not in text:
        return text
    parts = [unquote(part) for part in text.split("/")]
    if _DOTS.intersection(parts) or "" in parts[1:-1]:
        return None
    return "/".join(_encoded(part) for part in parts)


def part(text: str) -> str:
    """Return what a part of a normalized path means: a model's name."""
    return unquote(text)


def _encoded(part: str) -> str:
    for character, code in _KEPT.items():  # the percent sign comes first
        part = part.replace(character, code)
    return part
