"""What a client asked for, and what an upstream cannot do of it."""

from __future__ import annotations

from typing import Any, Literal

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.requests import GenerationRequest

Unsupported = Literal["refuse", "drop"]

# What changes nothing in how tokens are drawn, or is the proxy's own business.
_ALWAYS = frozenset(
    {
        *("model", "messages", "prompt", "stream", "stream_options", "user", "metadata", "store"),
        *("service_tier", "safety_identifier", "prompt_cache_key", "resume"),
    }
)
# Values that ask for nothing beyond what every upstream does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "ignore_eos": (False,),
}


def given(asked: GenerationRequest) -> dict[str, Any]:
    """Return the parameters that a client gave and that ask for something, by name."""
    values = {name: getattr(asked, name) for name in type(asked).model_fields}
    values |= asked.model_extra or {}
    return {
        name: value
        for name, value in values.items()
        if value is not None and name not in _ALWAYS and not _is_neutral(name, value)
    }


def _is_neutral(name: str, value: Any) -> bool:
    # 0 is not False: a completion's `logprobs: 0` asks for the drawn tokens' own
    return any(type(value) is type(one) and value == one for one in _NEUTRAL.get(name, ()))


def checked(
    asked: GenerationRequest, supported: frozenset[str], unsupported: Unsupported
) -> dict[str, Any]:
    """Return the given parameters that an upstream supports.

    Raises InvalidRequest for the first of the others, unless these are to be dropped.
    """
    values = given(asked)
    others = [name for name in values if name not in supported]
    if others and unsupported == "refuse":
        raise InvalidRequest(
            f"Unsupported parameter: '{others[0]}' is not supported with this model.",
            param=others[0],
            code=ErrorCode.UNSUPPORTED_PARAMETER,
        )
    return {name: value for name, value in values.items() if name in supported}
