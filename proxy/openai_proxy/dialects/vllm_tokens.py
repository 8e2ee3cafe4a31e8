"""The tokens that vLLM tells under Triton: an output `logprobs`, which is JSON in a text.

    [{"ID": {"logprob", "rank", "decoded_token"}, ..}, ..]

An object a token, those of an event alone. The token that was drawn comes first, whatever its rank;
the others are the likeliest. The token that ends a text is among them.
"""

from __future__ import annotations

from typing import Any

from openai_proxy.dialects.base import Json
from openai_proxy.dialects.fields import count_in, json_value, objects_in
from openai_proxy.dialects.logprobs import Draw, Token, token


def draws_in(told: Any, num_top: int) -> list[Draw]:
    """Return the tokens that an output tells, each with so many alternatives."""
    listed = json_value(told.encode()) if isinstance(told, str) else None
    return [_draw(place, num_top) for place in objects_in(listed) if place]


def _draw(place: Json, num_top: int) -> Draw:
    found = [(name, one if isinstance(one, dict) else {}) for name, one in place.items()]
    ranked = [(count_in(one, "rank") or 0, _token(name, one)) for name, one in found]
    top = sorted((one for one in ranked if 0 < one[0] <= num_top), key=lambda one: one[0])
    return Draw(ranked[0][1], [one for _, one in top])


def _token(name: str, told: Json) -> Token:
    return token(told.get("decoded_token"), told.get("logprob"), token_id=name)
