"""Deadlines of many requests, on the event loop that the proxy runs on."""

from __future__ import annotations

import asyncio
from collections import Counter

import uvloop

from http_edge.client_connection import EXTENSION, ClientConnection
from openai_protocol.errors import DeadlineExceeded
from openai_proxy.exchange import ClientGoneError
from openai_proxy.running import Receive, Running


async def wait(running: Running, seconds: float, ended: Counter[str]) -> None:
    """A request that would never end by itself; `ended` counts how it did."""
    try:
        async with running.leash(seconds):
            await asyncio.Event().wait()
    except BaseException as error:
        ended[type(error).__name__] += 1


async def never() -> dict[str, str]:
    """Receive nothing."""
    await asyncio.Event().wait()
    return {}


def test_deadlines_that_pass_while_others_begin() -> None:
    """Each request ends at its deadline, and none is left, also where many pass all the time."""

    async def run() -> tuple[Counter[str], int]:
        running = Running(Running())
        ended: Counter[str] = Counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(300):
                for _ in range(5):
                    group.create_task(wait(running, 0.05, ended))
                await asyncio.sleep(0.0007)
        return ended, len(running)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ended, num_left = runner.run(run())
    assert ended == {DeadlineExceeded.__name__: 1500}
    assert num_left == 0


async def test_deadlines_of_several() -> None:
    """One timer serves all: when a deadline has passed the next is set, an earlier one at once."""
    running = Running()
    ended: Counter[str] = Counter()
    tasks = [asyncio.create_task(wait(running, seconds, ended)) for seconds in (0.2, 0.01, 0.05)]
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert ended == {DeadlineExceeded.__name__: 3}


async def watched(connection: ClientConnection, receive: Receive) -> None:
    """A request on a connection."""
    async with Running().leash(60) as leash:
        leash.watch({"extensions": {EXTENSION: connection}}, receive)
        await asyncio.Event().wait()


async def test_a_lost_connection_ends_its_request() -> None:
    """A client that leaves, or has left already, ends its request."""
    connection = ClientConnection()
    task = asyncio.create_task(watched(connection, never))
    await asyncio.sleep(0)
    connection.lose()
    for ending in (task, watched(connection, never)):
        try:
            await ending
        except ClientGoneError:
            continue
        raise AssertionError


async def test_the_next_request_takes_the_connection_over() -> None:
    """A request that ends lets its connection go, but not one that the next already watches."""
    connection = ClientConnection()
    scope = {"extensions": {EXTENSION: connection}}
    async with Running().leash(60) as first:
        first.watch(scope, never)
        assert connection.on_lost is not None
        first.unwatch()
        assert connection.on_lost is None
        first.watch(scope, never)
        async with Running().leash(60) as second:
            second.watch(scope, never)
            watcher = connection.on_lost
            first.unwatch()
            assert connection.on_lost is watcher
