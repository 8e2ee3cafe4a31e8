"""A server of uvicorn's with bounded connections, and a client of bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from http_edge import listener
from http_edge.bounds import Bounds
from http_edge.bytes_in_flight import ByteBudget
from http_edge.client_connection import client_connection, send_last
from http_edge.connection import protocol
from http_edge.connections import Connections
from tests.proxy.harness import until

MIB = 1024 * 1024
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@dataclass
class App:
    """Answers with `answer` when the body is there; remembers what it was sent, and what ended."""

    answer: bytes = b"ok"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    num_begun: int = 0
    num_written: int = 0
    num_ended: int = 0
    held: asyncio.Event | None = None  # while it is not set, answers wait

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        self.num_begun += 1
        connection = client_connection(scope)
        assert connection is not None
        try:
            body = b""
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
            self.bodies.append(body)
            self.headers = list(scope["headers"])
            if self.held is not None:
                await self.held.wait()
            length = (b"content-length", b"%d" % len(self.answer))
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send_last(send, {"type": "http.response.body", "body": self.answer}, connection)
            self.num_written += not connection.is_lost
        finally:
            connection.let_go()
            self.num_ended += 1


@dataclass
class Served:
    """A running server: where, and what looks after its connections."""

    port: int
    connections: Connections
    budget: ByteBudget
    tls: ssl.SSLContext | None = None

    @asynccontextmanager
    async def client(
        self, *parts: bytes, receive_buffer: int | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection and send parts; one with a small `receive_buffer` is full soon."""
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        name = None if self.tls is None else "localhost"
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=self.tls, server_hostname=name, limit=1024
        )
        try:
            for part in parts:
                with contextlib.suppress(ConnectionError, RuntimeError):  # closed meanwhile
                    writer.write(part)
                    await writer.drain()
            yield reader, writer
        finally:
            writer.transport.abort()

    async def talk(self, *parts: bytes, seconds: float = 10) -> bytes:
        """Send parts; return all that comes until the end."""
        async with self.client(*parts) as (reader, _):
            return await rest(reader, seconds)


async def rest(reader: asyncio.StreamReader, seconds: float = 10) -> bytes:
    """Return all that comes until the end of a connection, however it ends."""
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        async with asyncio.timeout(seconds):
            while part := await reader.read(65536):
                received += part
    return received


@asynccontextmanager
async def serve(
    app: Callable[..., Awaitable[None]],
    *,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    capacity: int = 64 * MIB,
    **bounds: Any,
) -> AsyncIterator[Served]:
    """Run a server until the block ends; `tls` has the server's context and the client's."""
    budget = ByteBudget(capacity)
    connections = Connections(Bounds(**bounds), budget)
    config = uvicorn.Config(
        app,
        http=protocol(connections),
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=0,
        ssl_context_factory=None if tls is None else lambda _, __: tls[0],
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
    sock = listener.listen("127.0.0.1", 0)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    await until(lambda: server.started, every=0.001)
    try:
        yield Served(sock.getsockname()[1], connections, budget, None if tls is None else tls[1])
    finally:
        server.should_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await task
