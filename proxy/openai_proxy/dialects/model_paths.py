"""Models that stand in the path of their upstream's requests."""

from __future__ import annotations

from urllib.parse import quote

from openai_protocol.errors import model_not_found
from openai_proxy.dialects.asked import model_of
from openai_proxy.dialects.base import Call

_SAFE_IN_A_SEGMENT = "!$&'()*+,;=:@"  # RFC 3986, 3.3; servers that decode nothing find more names


def model_segment(call: Call, usual: str | None) -> str:
    """Return the model's name as a segment of a path; `usual` where the request names none.

    Raises InvalidRequest where there is no name, NotFound for one that is no segment.
    """
    name = call.upstream_model or usual or model_of(call)
    if name in (".", ".."):
        raise model_not_found(name)
    return quoted(name)


def quoted(name: str) -> str:
    """Return a name as a segment of a path."""
    return quote(name, safe=_SAFE_IN_A_SEGMENT)
