"""A budget of the memory that requests and answers take while they are on their way; pure.

What a request costs is told from its bytes, measured with the parser: a text stands in memory four
times (received, joined, decoded, checked), and each value of a list or an object is an object of
its own, which costs much more than its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

MIB = 1024 * 1024
COST_PER_BYTE = 4
COST_PER_VALUE = 64
COST_PER_HEADER = 256
# What a request costs besides its body while it runs: its tasks, its upstream's connection.
COST_PER_REQUEST = 64 * 1024
# Requests up to this cost may use all of the budget, larger ones three quarters: a few large ones
# leave room for the many small.
SMALL_COST = 256 * 1024
_KEY = "http_edge.lease"
_UNKNOWN_MEMORY = 1024 * MIB
_LEAST_CAPACITY = 16 * MIB


class ByteBudget:
    """How many bytes are in flight, and how many may be; owner: the server, in its event loop.

    `large_capacity` is what requests of more than `SMALL_COST` may use together with all others,
    `most_of_one` what one request counts at most, so that it fits beside small ones.
    """

    __slots__ = ("capacity", "large_capacity", "most_of_one", "used")

    def __init__(self, capacity: int) -> None:
        self.used = 0
        self.resize(capacity)

    def resize(self, capacity: int) -> None:
        """Let so many bytes be in flight from now on; what is held stays held."""
        self.capacity = capacity
        self.large_capacity = capacity * 3 // 4
        self.most_of_one = capacity // 2

    def fits(self, cost: int, held: int = 0) -> bool:
        """Tell whether a request that holds so much may take so much more."""
        if held + cost <= SMALL_COST:
            return self.used + cost <= self.capacity
        return self.used + cost <= self.large_capacity


class Lease:
    """What one request holds of a budget; owner: the request, which must `release` it."""

    __slots__ = ("_budget", "held")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, cost: int) -> bool:
        """Take more, unless it does not fit; tells whether it did.

        One request counts for half of the capacity at most: without other large ones it fits.
        """
        held, budget = self.held + cost, self._budget
        if held <= SMALL_COST and budget.used + cost <= budget.capacity:  # as most requests do
            self.held = held
            budget.used += cost
            return True
        if not self.could_take(cost):
            return False
        taken = max(0, min(cost, self._budget.most_of_one - self.held))
        self.held += taken
        self._budget.used += taken
        return True

    def could_take(self, cost: int) -> bool:
        """Tell whether `take` would take so much now."""
        cost = min(cost, self._budget.most_of_one - self.held)
        return cost <= 0 or self._budget.fits(cost, self.held)

    def charge(self, cost: int) -> None:
        """Take more, whether or not it fits: what is there already cannot be refused."""
        self.held += cost
        self._budget.used += cost

    def shrink(self, held: int) -> None:
        """Give back what is held beyond so much."""
        if held < self.held:
            self._budget.used -= self.held - held
            self.held = held

    def release(self) -> None:
        """Give all back; may be called twice."""
        self.shrink(0)


def attach_lease(scope: MutableMapping[str, Any], lease: Lease) -> None:
    """Put a request's lease into its ASGI scope."""
    scope[_KEY] = lease


def lease_of(scope: Mapping[str, Any]) -> Lease | None:
    """Return the lease of an ASGI scope; None where nothing counts bytes."""
    lease: Lease | None = scope.get(_KEY)
    return lease


def cost_of(chunk: bytes) -> int:
    """Return what a part of a JSON body costs in memory while its request is served, in bytes."""
    return COST_PER_BYTE * len(chunk) + COST_PER_VALUE * chunk.count(b",")


def default_capacity(max_body_bytes: int, share: float, available: int | None) -> int:
    """Return a budget in bytes: a share of the memory that is available, at least one large body.

    `available` is None where it is not known.
    """
    if available is None:
        available = _UNKNOWN_MEMORY
    return max(int(available * share), least_capacity(max_body_bytes))


def least_capacity(max_body_bytes: int) -> int:
    """Return the least budget in bytes into which the largest body fits."""
    return max(_LEAST_CAPACITY, -(-max_body_bytes * COST_PER_BYTE * 4 // 3))
