"""Settings of what requests may ask for at most."""

from __future__ import annotations

from pydantic import BaseModel, Field

from openai_protocol.json_shape import MAX_JSON_DEPTH, MAX_JSON_VALUES, NUMBERS_PER_VALUE
from openai_protocol.requests import MAX_MESSAGES


class LimitsSettings(BaseModel):
    """How much a request may be, and how many there may be; `max_body_bytes` is the server's."""

    # Five levels are what a message of several parts needs; the parser itself goes no deeper than
    # 200.
    max_json_depth: int = Field(
        MAX_JSON_DEPTH,
        ge=5,
        le=200,
        description="How deep lists and objects of a request's body may stand in each other.",
    )
    max_json_values: int = Field(
        MAX_JSON_VALUES,
        ge=1,
        description="Lists, objects and texts that a request's body may have, keys among them; "
        f"with numbers, as in lists of tokens, {NUMBERS_PER_VALUE} times as many.",
    )
    max_messages: int = Field(
        MAX_MESSAGES, ge=1, le=MAX_MESSAGES, description="Messages that a request may have."
    )
    max_concurrent_requests: int = Field(
        4096,
        ge=1,
        description="Requests that may run at a time; more get 429. Only POST counts, so that "
        "probes are always answered.",
    )
