"""Which requests have ended engines lately, and whose they were: bounded, told the time."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

import msgspec

from kserve_llamacpp.engine_client.generation import Request

REMEMBERED_SECONDS = 300.0
_MAX_REMEMBERED = 256  # the oldest is forgotten for a new one


class GuiltyRequests:
    """Remembers the last requests that were found guilty, for some minutes; owner: the client.

    A request is the same when its prompt and its sampling parameters are; seed and tenant do not
    count.
    """

    def __init__(self) -> None:
        self._found: deque[tuple[float, bytes, str]] = deque(maxlen=_MAX_REMEMBERED)

    def add(self, request: Request, now: float) -> None:
        """Remember a request under which engines died."""
        self._found.append((now, _digest(request), request.tenant))

    def has_any(self, requests: Sequence[Request], now: float) -> bool:
        """Whether one of these was found guilty lately; the choices of a prompt are the same."""
        self._forget(now)
        if not self._found:  # as nearly always: then nothing is hashed
            return False
        known = {digest for _, digest, _ in self._found}
        prompts = {id(request.prompt): request for request in requests}
        return any(_digest(request) in known for request in prompts.values())

    def num_of(self, tenant: str, now: float) -> int:
        """Return how many of a tenant's requests were found guilty lately."""
        self._forget(now)
        return sum(tenant == known for _, _, known in self._found)

    def _forget(self, now: float) -> None:
        while self._found and now - self._found[0][0] > REMEMBERED_SECONDS:
            self._found.popleft()


def _digest(request: Request) -> bytes:
    sampling = msgspec.structs.replace(request.sampling, seed=0, choice=0)
    asked = (request.prompt, sampling, request.stops, request.add_special)
    return hashlib.blake2b(msgspec.msgpack.encode(asked), digest_size=16).digest()
