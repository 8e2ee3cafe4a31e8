"""The flags that bound what clients may send and take, as the proxy's do."""

from __future__ import annotations

from collections.abc import Callable

from http_edge.bounds import MAX_CONNECTIONS, Bounds
from http_edge.bytes_in_flight import COST_PER_REQUEST, MIB, default_capacity, least_capacity
from kserve_llamacpp.errors import ConfigurationError
from openai_protocol.json_shape import MAX_JSON_DEPTH, MAX_JSON_VALUES, NUMBERS_PER_VALUE
from openai_protocol.requests import MAX_MESSAGES

# The model and its cache take most of the memory, and are sized by what is there.
_BYTES_SHARE = 1 / 16
_MOST_BYTES = 256 * MIB
_BOUNDS = Bounds()
_LONGEST_SECONDS = 86400


def add_limit_flags(add: Callable[..., object]) -> None:
    """Add the flags; `add` is a parser's `add_argument`."""
    add("--max_body_bytes", type=int, default=8 << 20, help="Largest request body; more gets 413.")
    _add_json_limits(add)
    _add_connection_limits(add)


def _add_json_limits(add: Callable[..., object]) -> None:
    add(
        "--max_json_depth",
        type=int,
        default=MAX_JSON_DEPTH,
        help="How deep lists and objects of a request's body may stand in each other.",
    )
    add(
        "--max_json_values",
        type=int,
        default=MAX_JSON_VALUES,
        help="Lists, objects and texts that a request's body may have, keys among them; with "
        f"numbers, as in lists of tokens, {NUMBERS_PER_VALUE} times as many.",
    )
    add(
        "--max_messages",
        type=int,
        default=MAX_MESSAGES,
        help="Messages that a conversation may have.",
    )


def _add_connection_limits(add: Callable[..., object]) -> None:
    add(
        "--head_timeout_seconds",
        type=float,
        default=_BOUNDS.head_seconds,
        help="Time for a request's head: a connection whose head does not end is closed.",
    )
    add(
        "--body_timeout_seconds",
        type=float,
        default=_BOUNDS.body_seconds,
        help="In each such time, --min_bytes_per_second must come of a body on average, or it "
        "gets 408.",
    )
    add(
        "--write_timeout_seconds",
        type=float,
        default=_BOUNDS.write_seconds,
        help="In each such time, --min_bytes_per_second must be read of an answer that waits for "
        "its client, on average, or the connection is ended.",
    )
    add(
        "--min_bytes_per_second",
        type=int,
        default=_BOUNDS.min_bytes_per_second,
        help="How fast a client must at least send a body and read an answer. 0: not at all, as "
        "long as something moves.",
    )
    add(
        "--max_connections",
        type=int,
        default=0,
        help="Connections of clients; for one more, that is closed which has waited longest for "
        "its client to send something. 0: what fits into a quarter of the memory that is available "
        "at the start (8 KiB each, 64 KiB with TLS) and into half of what the limit of open files "
        f"leaves, {MAX_CONNECTIONS} at most.",
    )
    add(
        "--max_bytes_in_flight",
        type=int,
        default=0,
        help="Memory for requests and answers on their way, where a byte of a body counts 4 times "
        f"and a request {COST_PER_REQUEST} bytes more; what has no room gets 503. 0: a sixteenth "
        f"of the memory that is available at the start, {_MOST_BYTES // MIB} MiB at most.",
    )


def byte_capacity(asked: int, max_body_bytes: int, available: int | None) -> int:
    """Return how many bytes may be in flight; 0 asks for the default. Raises ConfigurationError."""
    least = least_capacity(max_body_bytes)
    if not asked:
        share = default_capacity(max_body_bytes, _BYTES_SHARE, available)
        return max(least, min(share, _MOST_BYTES))
    if asked < least:
        raise ConfigurationError(
            f"--max_bytes_in_flight is {asked}, but the largest body (--max_body_bytes "
            f"{max_body_bytes}) needs {least}: raise the one, lower the other, or leave it out"
        )
    return asked


LEAST = {
    "max_body_bytes": 1,
    "max_json_depth": 5,  # what a message of several parts needs
    "max_json_values": 1,
    "max_messages": 1,
    "head_timeout_seconds": 0.1,
    "body_timeout_seconds": 0.1,
    "write_timeout_seconds": 0.1,
    "timeout_keep_alive": 1,
    "min_bytes_per_second": 0,
    "max_connections": 0,
    "max_bytes_in_flight": 0,
}
MOST = {
    "max_json_depth": 200,  # the parser itself goes no deeper
    "max_messages": MAX_MESSAGES,
    "head_timeout_seconds": _LONGEST_SECONDS,
    "body_timeout_seconds": _LONGEST_SECONDS,
    "write_timeout_seconds": _LONGEST_SECONDS,
}
