"""What one connection may take, and how many there may be."""

from __future__ import annotations

import resource
from dataclasses import dataclass

KIB = 1024
MAX_HEAD_BYTES = 64 * KIB
MAX_HEADERS = 256
# Requests that a client sends before it has the answers to earlier ones.
MAX_PIPELINED = 32
# What a body in chunks may have besides its bytes (sizes, extensions, trailers): so much, and a
# multiple of the bytes. Chunks of one byte have five more.
MAX_CHUNK_OVERHEAD_BYTES = 64 * KIB
CHUNK_OVERHEAD_RATIO = 8
MAX_CONNECTIONS = 16384
# What an idle connection costs in memory, measured: 5 KB, and 52 KB with TLS. All that there may
# be get a quarter of what is available.
_CONNECTION_BYTES = 8 * KIB
_SECURE_CONNECTION_BYTES = 64 * KIB
_LEAST_CONNECTIONS = 16
# A connection to a client has one to an upstream beside it; files and pipes have some.
_SPARE_FILES = 128


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may take, times in seconds; `max_connections` is for all together.

    A head must be complete within `head_seconds`. Of a body, and of an answer that waits for its
    client, so many bytes a second must move on average in every `body_seconds` or `write_seconds`.
    """

    head_seconds: float = 30.0
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    idle_seconds: float = 75.0
    min_bytes_per_second: int = 1024
    max_head_bytes: int = MAX_HEAD_BYTES
    max_connections: int = MAX_CONNECTIONS

    def least_bytes(self, seconds: float) -> float:
        """Return how many bytes must move in so many seconds; at least one."""
        return max(1.0, seconds * self.min_bytes_per_second)

    @property
    def look_seconds(self) -> float:
        """How often connections are looked at: no deadline is missed by much more than that."""
        shortest = min(self.head_seconds, self.body_seconds, self.write_seconds, self.idle_seconds)
        return min(max(shortest / 4, 0.02), 5.0)


def max_connections(
    available: int | None, *, is_secure: bool = False, num_files: int | None = None
) -> int:
    """Return how many connections fit into a quarter of the memory, and among the open files.

    `available` is the memory in bytes, None where it is not known; `num_files` is how many files
    may be open, by default the process's own limit.
    """
    if num_files is None:
        num_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = MAX_CONNECTIONS
    if num_files != resource.RLIM_INFINITY:
        most = min(most, (num_files - _SPARE_FILES) // 2)
    if available is not None:
        each = _SECURE_CONNECTION_BYTES if is_secure else _CONNECTION_BYTES
        most = min(most, available // 4 // each)
    return max(_LEAST_CONNECTIONS, most)
