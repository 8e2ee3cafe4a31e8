"""Settings of what requests may ask for at most."""

from __future__ import annotations

from pydantic import BaseModel, Field

from http_edge.bounds import MAX_CONNECTIONS, Bounds
from http_edge.bytes_in_flight import COST_PER_BYTE, COST_PER_REQUEST, COST_PER_VALUE
from openai_protocol.json_shape import MAX_JSON_DEPTH, MAX_JSON_VALUES, NUMBERS_PER_VALUE
from openai_protocol.requests import MAX_MESSAGES
from openai_proxy.config.types import Seconds

_BOUNDS = Bounds()


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

    head_timeout_seconds: Seconds = Field(
        _BOUNDS.head_seconds,
        description="Time for a request's head: a connection whose head does not end is closed.",
    )
    body_timeout_seconds: Seconds = Field(
        _BOUNDS.body_seconds,
        description="In each such time, `min_bytes_per_second` must come of a body on average, or "
        "it gets 408.",
    )
    write_timeout_seconds: Seconds = Field(
        _BOUNDS.write_seconds,
        description="In each such time, `min_bytes_per_second` must be read of an answer that "
        "waits for its client, on average, or the connection is ended.",
    )
    idle_timeout_seconds: Seconds = Field(
        _BOUNDS.idle_seconds,
        description="How long a connection stays open between two requests: longer than load "
        "balancers keep theirs, commonly 60 seconds.",
    )
    min_bytes_per_second: int = Field(
        _BOUNDS.min_bytes_per_second,
        ge=0,
        description="How fast a client must at least send a body and read an answer; 0: not at "
        "all, as long as something moves.",
    )
    max_connections: int = Field(
        0,
        ge=0,
        description="Connections of clients; for one more, that is closed which has waited "
        "longest for its client to send something. 0: what fits into a quarter of the memory that "
        "is available at the start (8 KiB each, 64 KiB with TLS) and into half of what the limit "
        f"of open files leaves, {MAX_CONNECTIONS} at most.",
    )
    max_bytes_in_flight: int = Field(
        0,
        ge=0,
        description="Memory for requests and answers on their way, where a byte of a body counts "
        f"{COST_PER_BYTE} times, each value {COST_PER_VALUE} bytes and each request that runs "
        f"{COST_PER_REQUEST} bytes more; what has no room gets 503. 0: half of the memory that is "
        "available at the start.",
    )
