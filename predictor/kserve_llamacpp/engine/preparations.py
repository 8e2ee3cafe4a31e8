"""What takes long before a request can wait for its turn: done in parts between steps. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator

Preparation = Generator[None, None, None]  # comes back after each part, of a millisecond or less


class Preparations:
    """The requests that are being prepared, tenants in turn; owner: the engine."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock
        self._tenants: dict[str, deque[tuple[int, Preparation]]] = {}  # who is next comes first

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    def put(self, id: int, tenant: str, preparation: Preparation) -> None:
        """Prepare a request after its tenant's others."""
        self._tenants.setdefault(tenant, deque()).append((id, preparation))

    def drop(self, id: int) -> None:
        """Prepare a request no further; one that is not prepared is ignored."""
        for tenant, queue in list(self._tenants.items()):
            for entry in [entry for entry in queue if entry[0] == id]:
                entry[1].close()
                queue.remove(entry)
            if not queue:
                del self._tenants[tenant]

    def run(self, seconds: float) -> None:
        """Prepare for so long, a part of each tenant's first request in turn."""
        began = self._now()
        while self._tenants:
            tenant, queue = next(iter(self._tenants.items()))
            del self._tenants[tenant]
            try:
                next(queue[0][1])
            except StopIteration:
                queue.popleft()
            if queue:
                self._tenants[tenant] = queue
            if self._now() - began >= seconds:
                return
