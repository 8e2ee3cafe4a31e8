"""The addresses behind an upstream's name, looked up again and again; which one is next.

A headless Service's name has an address for each ready pod. They come and go within seconds, and
a connection stays with its pod: so the proxy chooses the pod, and not the name's resolver.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

LOOKUP_SECONDS = 1.0
# An address that has just refused is used only where there is no other: a resolver may go on
# naming a pod for some seconds after its end.
AVOID_SECONDS = 5.0
# A name without an address keeps those that it had last: a pod that is not ready is not gone, and
# a predictor keeps its requests while its engine restarts. Not for good: others may get them.
KEEP_SECONDS = 60.0

# Returns a name's addresses, all of them; none where it has none now. OSError: nothing is known.
Lookup = Callable[[str, int], Awaitable[tuple[str, ...]]]


@dataclass(slots=True, eq=False)
class Endpoint:
    """One address, or a name that only the HTTP client resolves; `Endpoints` owns the state."""

    host: str
    num_outstanding: int = 0
    avoided_until: float = 0.0


class Endpoints:
    """The addresses of one host; keeps them up to date while `run` runs.

    Without a `lookup` the host itself is the one endpoint, for good.
    """

    def __init__(
        self,
        host: str,
        port: int,
        lookup: Lookup | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._lookup = lookup
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  # spreads load, hides nothing
        self._endpoints: tuple[Endpoint, ...] = () if lookup else (Endpoint(host),)
        self._seen_at = clock()
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that are known now."""
        return tuple(endpoint.host for endpoint in self._endpoints)

    async def run(self) -> None:
        """Look up, wait, look up again; until cancelled."""
        while self._lookup is not None:
            await self.refresh()
            await self._sleep(LOOKUP_SECONDS)

    async def refresh(self) -> None:
        """Look the name up now; who comes while that is being done waits for the same answer."""
        if self._lookup is None:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._look_up(self._lookup))
        await asyncio.shield(self._refreshing)

    async def _look_up(self, lookup: Lookup) -> None:
        try:
            hosts = await lookup(self._host, self._port)
        except OSError:
            return  # what was known before is the best guess
        if hosts:
            self._seen_at = self._clock()
        elif self._clock() - self._seen_at < KEEP_SECONDS:
            return
        if len({":" in host for host in hosts}) > 1:
            hosts = (self._host,)  # two families: the HTTP client tries both
        known = {endpoint.host: endpoint for endpoint in self._endpoints}
        self._endpoints = tuple(known.get(host) or Endpoint(host) for host in sorted(set(hosts)))

    async def choose(self, failed: Endpoint | None = None) -> Endpoint | None:
        """Return the endpoint with the fewest requests, if possible not the one that failed.

        None: the name has no address.
        """
        if failed is None and len(self._endpoints) == 1:
            return self._endpoints[0]
        is_other_known = len(self._endpoints) > (failed is not None)
        if not is_other_known:
            await self.refresh()
        others = [endpoint for endpoint in self._endpoints if endpoint is not failed]
        return self._least_loaded(others or list(self._endpoints))

    def _least_loaded(self, endpoints: list[Endpoint]) -> Endpoint | None:
        now = self._clock()
        endpoints = [one for one in endpoints if one.avoided_until <= now] or endpoints
        if not endpoints:
            return None
        fewest = min(endpoint.num_outstanding for endpoint in endpoints)
        # By chance among equals: turns would fall in step with the probe's.
        return self._rng.choice([one for one in endpoints if one.num_outstanding == fewest])

    def avoid(self, endpoint: Endpoint) -> None:
        """Prefer others for a while: a connection to this one has failed."""
        endpoint.avoided_until = self._clock() + AVOID_SECONDS


async def look_up(host: str, port: int) -> tuple[str, ...]:
    """Ask the system's resolver, in a thread; raises OSError where it cannot tell."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
    except socket.gaierror as error:
        if error.errno in _NO_ADDRESS:
            return ()
        raise
    return tuple(str(entry[4][0]) for entry in found)


_NO_ADDRESS = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


def is_address(host: str) -> bool:
    """Tell whether a host is an address already."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
