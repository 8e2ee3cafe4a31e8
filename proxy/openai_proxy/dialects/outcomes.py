"""How a generation ends at KServe, Triton and their like, well or not, in OpenAI's words."""

from __future__ import annotations

from typing import Any

from openai_proxy.dialects.upstream_errors import failed

_REASONS = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
_UNFINISHED = frozenset({"", "none", "null"})  # vLLM under Triton writes Python's None
_FAILED = frozenset({"abort", "aborted", "error"})


def single(value: Any) -> Any:
    """Return the element of a list of one, else the value itself."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def finish_reason(told: Any) -> str | None:
    """Return why a text ends, None where it has not ended; raises BadGateway where it failed."""
    told = single(told)
    if not isinstance(told, str) or told.lower() in _UNFINISHED:
        return None
    if told.lower() in _FAILED:
        raise failed()
    return _REASONS.get(told.lower(), "stop")  # eos_token, stop_sequence and other names of it
