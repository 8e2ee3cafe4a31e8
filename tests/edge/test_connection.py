"""What one connection may take: heads, bodies, answers, and the time for each; on real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from http_edge.client_connection import ClientConnection
from tests.edge.serving import GET, HEAD, MIB, App, rest, serve
from tests.proxy.certificates import Authority
from tests.proxy.harness import until

LONG = b"a" * 4 * MIB  # more than the kernel takes for a client that does not read


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts for a server and a client that know each other."""
    authority = Authority()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*authority.issue().write(tmp_path))
    client = ssl.create_default_context(cadata=authority.pem.decode())
    return server, client


def posted(body: bytes) -> bytes:
    """A whole request."""
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


def refusal(answered: bytes) -> tuple[int, str]:
    """The status and the code of an error in the envelope."""
    head, _, body = answered.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


# Heads


@pytest.mark.parametrize("size", [66_000, 200_000])
async def test_a_long_head_is_refused_however_it_comes(size: int) -> None:
    """A head past the bound gets 431, also when all of it comes in one piece."""
    app = App()
    async with serve(app) as server:
        answered = await server.talk(HEAD + b"x-long: " + b"a" * size + b"\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 431 ")
        answered = await server.talk(HEAD, *[b"a:b\r\n" * 10_000] * 500)
        assert not answered or answered.startswith(b"HTTP/1.1 431 ")
    assert app.num_begun == 0


async def test_a_head_of_many_headers_is_refused() -> None:
    """Each header costs far more memory than its bytes: more than the bound get 431."""
    app = App()
    async with serve(app) as server:
        answered = await server.talk(HEAD + b"a:b\r\n" * 1000 + b"\r\n")
        assert refusal(answered)[0] == 431
        answered = await server.talk(HEAD + b"a:b\r\n" * 200 + b"connection: close\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 200 ")
    assert app.num_begun == 1


async def test_a_long_head_after_a_body_is_served() -> None:
    """What came before a head, in the same packet, does not count for it."""
    app = App()
    second = HEAD + b"x-long: " + b"a" * 60_000 + b"\r\nconnection: close\r\ncontent-length: 0\r\n"
    async with serve(app) as server:
        answered = await server.talk(posted(b"b" * 100_000) + second + b"\r\n")
    assert answered.count(b"HTTP/1.1 200 ") == 2


async def test_a_long_head_after_a_request_is_refused() -> None:
    """A head that begins amid what is read at a time is bounded, too."""
    app = App()
    async with serve(app) as server:
        long = HEAD + b"x-long: " + b"a" * 150_000
        answered = await server.talk(posted(b"b") + long, b"\r\n\r\n")
        assert answered.count(b"HTTP/1.1 200 ") <= 1
        await until(lambda: not len(server.connections))
    assert app.num_begun <= 1


async def test_trailers_are_no_headers() -> None:
    """What follows a body in chunks is not added to the request's headers."""
    app = App()
    chunked = HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    async with serve(app) as server:
        answered = await server.talk(chunked + b"2\r\nhi\r\n0\r\nx-tenant: other\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert app.bodies == [b"hi"]
    assert b"x-tenant" not in dict(app.headers)


@pytest.mark.parametrize("rubbish", [b"0\r\n" + b"a:b\r\n" * 60_000, b"1;" + b"x" * 300_000])
async def test_what_is_no_body_is_bounded(rubbish: bytes) -> None:
    """Trailers and extensions of chunks are no body: they have a bound of their own."""
    app = App()
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    async with serve(app) as server:
        answered = await server.talk(chunked + rubbish)
        assert refusal(answered)[0] == 400
        tiny = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
        closing = chunked.replace(b"host: x\r\n", b"host: x\r\nconnection: close\r\n")
        assert (await server.talk(closing + tiny)).startswith(b"HTTP/1.1 200 ")


async def test_requests_sent_ahead_are_bounded() -> None:
    """Each request that waits for an earlier answer costs memory: too many end the connection."""
    app = App(held=asyncio.Event())
    async with serve(app) as server:
        assert await server.talk(GET * 2000) == b""
        assert app.num_begun == 1
        app.held = None
        last = GET.replace(b"host: x", b"host: x\r\nconnection: close")
        assert (await server.talk(GET * 20 + last)).count(b"HTTP/1.1 200 ") == 21


# Slow clients


async def test_a_slow_body_gets_408() -> None:
    """A body that comes too slowly is given up, with a word why."""
    app = App()
    async with serve(app, body_seconds=0.2) as server:
        answered = await server.talk(HEAD + b"content-length: 9\r\n\r\n{")
        await until(lambda: app.num_ended == 1)
    assert refusal(answered) == (408, "request_timeout")
    assert app.bodies == []


async def test_who_was_fast_may_not_stop() -> None:
    """What came at once is no credit: a body that stops coming is given up all the same."""
    app = App()
    async with serve(app, body_seconds=0.2) as server:
        start = HEAD + b"content-length: 9999999\r\n\r\n" + b"a" * MIB
        assert refusal(await server.talk(start))[0] == 408


async def test_a_body_that_comes_steadily_is_served() -> None:
    """A slow line is no attack: what keeps the least rate is served, however long it takes."""
    app = App()
    async with (
        serve(app, body_seconds=0.2, min_bytes_per_second=1000) as server,
        server.client(HEAD + b"connection: close\r\ncontent-length: 2000\r\n\r\n") as client,
    ):
        reader, writer = client
        for _ in range(20):
            writer.write(b"a" * 100)
            await asyncio.sleep(0.04)
        assert (await rest(reader)).startswith(b"HTTP/1.1 200 ")


async def test_a_body_after_its_answer_is_bounded() -> None:
    """A client that has its answer already cannot go on with its body for ever."""

    async def refuse(scope: object, receive: object, send: object) -> None:
        length = (b"content-length", b"0")
        await send({"type": "http.response.start", "status": 404, "headers": [length]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    async with (
        serve(refuse, body_seconds=0.2, min_bytes_per_second=0) as server,
        server.client(HEAD + b"content-length: 9999999\r\n\r\na") as (reader, writer),
    ):
        sending = asyncio.create_task(_drip(reader, writer))
        assert (await rest(reader, 3)).startswith(b"HTTP/1.1 404 ")
        await asyncio.wait_for(sending, 3)


async def _drip(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, part: bytes = b"a"
) -> None:
    """Send a little again and again, until the connection ends."""
    while not reader.at_eof() and reader.exception() is None:
        writer.write(part)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("part", [b"", b"\r\n"])
async def test_an_idle_connection_is_closed(part: bytes) -> None:
    """Between requests too, and empty lines are no requests."""
    async with (
        serve(App(), idle_seconds=0.3, head_seconds=0.3) as server,
        server.client(GET) as (reader, writer),
    ):
        sending = asyncio.create_task(_drip(reader, writer, part))
        assert (await rest(reader, 3)).startswith(b"HTTP/1.1 200 ")
        await asyncio.wait_for(sending, 3)


async def test_a_connection_whose_answer_takes_long_stays() -> None:
    """Only clients are timed: the server may take longer than all of their times."""
    app = App(held=asyncio.Event())
    times = dict.fromkeys(("idle_seconds", "head_seconds", "body_seconds", "write_seconds"), 0.1)
    async with serve(app, **times) as server, server.client(posted(b"x")) as (reader, _):
        await asyncio.sleep(0.5)
        assert app.held is not None
        app.held.set()
        assert (await rest(reader)).startswith(b"HTTP/1.1 200 ")


# Answers that nobody reads


@pytest.mark.parametrize("is_secure", [False, True])
async def test_an_answer_that_nobody_reads_counts_and_ends(
    is_secure: bool, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """A whole answer runs and is in flight while its client does not read it, then it is ended."""
    app = App(LONG)
    async with serve(app, write_seconds=0.5, tls=tls if is_secure else None) as server:
        async with server.client(GET, receive_buffer=4096):
            await until(lambda: server.budget.used > 0)
            assert app.num_ended == 0
            await until(lambda: app.num_ended == 1, 3)
        assert app.num_written == 0
        await until(lambda: not len(server.connections))
        assert server.budget.used == 0


async def test_a_slow_reader_gets_its_answer() -> None:
    """Who reads a little all the time is not ended, though the kernel shows it in leaps alone."""
    app = App(LONG)
    async with (
        serve(app, write_seconds=0.3, min_bytes_per_second=10_000) as server,
        server.client(GET, receive_buffer=4096) as (reader, _),
    ):
        for _ in range(40):
            await reader.readexactly(2000)
            await asyncio.sleep(0.03)
        assert app.num_ended == 0
        assert len(server.connections) == 1


async def test_the_kernel_holds_little_of_an_answer() -> None:
    """What a client does not read stays here and is counted: the kernel could hold megabytes."""
    app = App(b"a" * MIB)
    async with serve(app) as server, server.client(GET, receive_buffer=4096):
        await until(lambda: server.budget.used > 0)
        await asyncio.sleep(0.1)
        assert app.num_ended == 0


async def test_a_reader_at_a_trickle_is_ended() -> None:
    """Who reads a byte now and then holds nothing for good."""
    app = App(LONG)
    async with (
        serve(app, write_seconds=0.3, min_bytes_per_second=100_000) as server,
        server.client(GET, receive_buffer=4096) as (reader, _),
    ):
        for _ in range(100):
            if app.num_ended:
                break
            await reader.read(10)
            await asyncio.sleep(0.03)
        assert app.num_ended == 1
        assert app.num_written == 0


async def test_a_request_that_is_given_up_leaves_nothing_unread() -> None:
    """Cancelled while its client does not read, a request ends its connection: its bytes go."""
    app = App(LONG)
    async with serve(app) as server, server.client(GET, receive_buffer=4096):
        await until(lambda: server.budget.used > 0)
        for task in asyncio.all_tasks():
            if "run_asgi" in repr(task.get_coro()):
                task.cancel()
        await until(lambda: not len(server.connections))
        assert server.budget.used == 0


# How many


async def test_the_longest_silent_gives_way() -> None:
    """With all places taken, a new client gets that of the one that was silent the longest."""
    app = App(held=asyncio.Event())
    async with (
        serve(app, max_connections=3) as server,
        server.client() as (first, _),
        server.client(posted(b"x")) as (busy, _),
        server.client(HEAD) as (third, _),
    ):
        await until(lambda: app.num_begun == 1 and len(server.connections) == 3)
        async with server.client(posted(b"y")) as (new, _):
            assert await rest(first, 2) == b""
            await until(lambda: app.num_begun == 2)
            assert app.held is not None
            app.held.set()
            assert b"200" in await new.readline()
            assert b"200" in await busy.readline()
            assert len(server.connections) == 3
            assert not third.at_eof()


async def test_with_all_places_busy_a_client_is_told() -> None:
    """Requests that run keep their places: one more connection gets 503."""
    app = App(held=asyncio.Event())
    async with (
        serve(app, max_connections=2) as server,
        server.client(posted(b"x")),
        server.client(posted(b"x")),
    ):
        await until(lambda: app.num_begun == 2)
        answered = await server.talk(GET)
        assert refusal(answered) == (503, "server_overloaded")
        assert b"retry-after: " in answered


async def test_long_heads_are_in_flight() -> None:
    """Heads that are not complete count: many of them are refused, not held."""
    app = App()
    head = HEAD + b"x-long: " + b"a" * 40_000
    async with serve(app, capacity=400_000) as server:
        async with server.client(head), server.client(head):
            await until(lambda: server.budget.used > 300_000)
            assert refusal(await server.talk(head)) == (503, "server_overloaded")
        await until(lambda: server.budget.used == 0)


async def test_all_of_several_unread_answers_end() -> None:
    """Answers to requests that were sent ahead wait at the same time; none waits for ever."""
    connection = ClientConnection()
    connection.is_full = True
    answers = [asyncio.create_task(connection.written()) for _ in range(3)]
    await asyncio.sleep(0)
    connection.note_room()
    async with asyncio.timeout(1):
        await asyncio.gather(*answers)


@pytest.mark.parametrize("rubbish", [b"a:b\r\n" * 20_000, b"\x00"])
async def test_a_refusal_is_never_put_into_an_answer(rubbish: bytes) -> None:
    """What is refused while an earlier request is served ends the connection, without a word."""
    app = App(held=asyncio.Event())
    async with serve(app) as server, server.client(GET + HEAD) as (reader, writer):
        await until(lambda: app.num_begun == 1)
        writer.write(rubbish)
        await writer.drain()
        assert b"HTTP/1.1 4" not in await rest(reader)


async def test_refusals_are_logged() -> None:
    """What the connection refuses itself reaches no access log: it has a line of its own."""
    async with serve(App()) as server:
        with capture_logs() as lines:
            await server.talk(HEAD + b"a:b\r\n" * 1000 + b"\r\n")
            await server.talk(HEAD.replace(b"x", b"\x00"))
    told = [(line["status"], line["error_code"]) for line in lines]
    assert told == [(431, "invalid_value"), (400, "invalid_value")]
    assert {line["event"] for line in lines} == {"request_refused"}
