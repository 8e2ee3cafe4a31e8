"""Which address a request goes to: the name looked up again, the least loaded, not the failed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from dataclasses import dataclass, field

from openai_proxy.routing.endpoints import (
    AVOID_SECONDS,
    KEEP_SECONDS,
    LOOKUP_SECONDS,
    Endpoint,
    Endpoints,
    is_address,
    look_up,
)
from tests.proxy.harness import until


@dataclass
class World:
    """A name service, and a clock that stands still."""

    hosts: tuple[str, ...] = ()
    error: OSError | None = None
    now: float = 0.0
    num_lookups: int = 0
    sleeps: list[float] = field(default_factory=list)

    async def look_up(self, host: str, port: int) -> tuple[str, ...]:
        assert (host, port) == ("pods", 8080)
        self.num_lookups += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.hosts

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await asyncio.Event().wait()

    def endpoints(self) -> Endpoints:
        return Endpoints("pods", 8080, self.look_up, lambda: self.now, self.sleep, random.Random(1))


async def choose(endpoints: Endpoints, failed: Endpoint | None = None) -> Endpoint:
    """Choose, and take a request there."""
    endpoint = await endpoints.choose(failed)
    assert endpoint is not None
    endpoint.num_outstanding += 1
    return endpoint


async def test_single_requests_are_spread() -> None:
    """Requests that never overlap go to all addresses, more or less as often."""
    world = World(("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    endpoints = world.endpoints()
    seen = [await endpoints.choose() for _ in range(60)]
    hosts = [endpoint.host for endpoint in seen if endpoint]
    assert all(hosts.count(host) > 10 for host in world.hosts)
    assert world.num_lookups == 1


async def test_the_least_loaded_is_chosen() -> None:
    """A new address without requests gets all of them until it has as many as the others."""
    world = World(("10.0.0.1",))
    endpoints = world.endpoints()
    old = [await choose(endpoints) for _ in range(3)]
    world.hosts = ("10.0.0.1", "10.0.0.2")
    await endpoints.refresh()
    new = [await choose(endpoints) for _ in range(3)]
    assert {endpoint.host for endpoint in old} == {"10.0.0.1"}
    assert {endpoint.host for endpoint in new} == {"10.0.0.2"}


async def test_an_address_keeps_its_requests_over_a_lookup() -> None:
    """What runs at an address is still counted after the name was looked up again."""
    world = World(("10.0.0.1", "10.0.0.2"))
    endpoints = world.endpoints()
    first = await choose(endpoints)
    await endpoints.refresh()
    second = await choose(endpoints)
    assert second.host != first.host


async def test_the_failed_one_is_not_chosen_again() -> None:
    """A second attempt goes to another address, and so do others for a while."""
    world = World(("10.0.0.1", "10.0.0.2"))
    endpoints = world.endpoints()
    failed = await choose(endpoints)
    endpoints.avoid(failed)
    for _ in range(3):
        assert (await choose(endpoints, failed)).host != failed.host
        assert (await choose(endpoints)).host != failed.host
    world.now += AVOID_SECONDS
    assert (await choose(endpoints)).host == failed.host


async def test_the_only_one_is_chosen_again_after_a_lookup() -> None:
    """Where there is one address, the name is looked up before the second attempt."""
    world = World(("10.0.0.1",))
    endpoints = world.endpoints()
    failed = await choose(endpoints)
    endpoints.avoid(failed)
    assert (await choose(endpoints, failed)).host == "10.0.0.1"
    world.hosts = ("10.0.0.2",)
    assert (await choose(endpoints, failed)).host == "10.0.0.2"


async def test_a_name_without_addresses() -> None:
    """The last addresses are kept for a while; a resolver that cannot tell changes nothing."""
    world = World(("10.0.0.1",))
    endpoints = world.endpoints()
    await endpoints.refresh()
    world.error = socket.gaierror(socket.EAI_AGAIN, "try again")
    await endpoints.refresh()
    assert endpoints.hosts == ("10.0.0.1",)
    world.error, world.hosts = None, ()
    world.now = KEEP_SECONDS - 0.1
    await endpoints.refresh()
    assert endpoints.hosts == ("10.0.0.1",)
    world.now = KEEP_SECONDS
    assert await endpoints.choose() is not None
    await endpoints.refresh()
    assert await endpoints.choose() is None


async def test_two_families_are_left_to_the_client() -> None:
    """A name with IPv4 and IPv6 addresses is one endpoint: the HTTP client tries both."""
    world = World(("127.0.0.1", "::1"))
    endpoints = world.endpoints()
    assert (await choose(endpoints)).host == "pods"


async def test_run_looks_up_every_second() -> None:
    """The name is looked up again and again, whether or not requests come."""
    world = World(("10.0.0.1",))
    endpoints = world.endpoints()
    running = asyncio.create_task(endpoints.run())
    await until(lambda: bool(world.sleeps))
    running.cancel()
    assert world.num_lookups == 1
    assert world.sleeps == [LOOKUP_SECONDS]
    assert LOOKUP_SECONDS == 1


async def test_first_requests_share_a_lookup() -> None:
    """Requests that come before anything is known wait for one lookup together."""
    world = World(("10.0.0.1",))
    endpoints = world.endpoints()
    found = await asyncio.gather(*(endpoints.choose() for _ in range(5)))
    assert {endpoint.host for endpoint in found if endpoint} == {"10.0.0.1"}
    assert world.num_lookups == 1


async def test_an_address_is_not_looked_up() -> None:
    """Without a lookup the host is the one endpoint."""
    endpoints = Endpoints("127.0.0.1", 80, None)
    await endpoints.run()
    assert endpoints.hosts == ("127.0.0.1",)
    assert is_address("::1")
    assert not is_address("localhost")


async def test_the_systems_resolver() -> None:
    """The real lookup knows this machine, and tells a name that does not exist."""
    assert set(await look_up("localhost", 80)) <= {"127.0.0.1", "::1"}
    with contextlib.suppress(socket.gaierror):  # where there is no name server at all
        assert await look_up("no-such-name.invalid", 80) == ()
