"""What happens to every request before and after its route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from http_edge.bytes_in_flight import MIB, ByteBudget
from http_edge.client_connection import EXTENSION, ClientConnection
from http_edge.head_rules import HeadRules
from http_edge.hosts import HostRules
from kserve_llamacpp.api.middleware import RequestGate
from openai_protocol.errors import RateLimited
from tests.predictor.fake_process import settle

Route = Callable[[Scope, Receive, Send], Awaitable[None]]
_LIMIT = 10


class _Call:
    """One request through the gate: the test is the client and the server around it."""

    def __init__(
        self, app: ASGIApp, path: str = "/v1/x", method: str = "POST", **headers: str
    ) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [
                (b"host", b"localhost"),
                *((name.encode(), value.encode()) for name, value in names.items()),
            ],
        }
        self.sent: list[Message] = []
        self.num_received = 0
        self.now = 0.0
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.is_draining = False
        self.budget = ByteBudget(16 * MIB)
        self.connection = ClientConnection()
        self.scope["extensions"] = {EXTENSION: self.connection}
        self._gate = RequestGate(
            app,
            max_body_bytes=_LIMIT,
            head_rules=HeadRules(HostRules("127.0.0.1"), "--allowed_hosts"),
            budget=self.budget,
            is_draining=lambda: self.is_draining,
            clock=lambda: self.now,
        )

    def put(self, body: bytes, more: bool = False) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})
        self.connection.lose()

    async def run(self) -> None:
        await self._gate(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        self.num_received += 1
        return await self._incoming.get()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.sent[1]["body"])["error"])


async def _answer(send: Send, body: bytes = b"ok", status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body that came."""
    message = await receive()
    assert not message["more_body"]
    await _answer(send, message["body"])


async def _show_id(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request ids that the application sees."""
    ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
    ids.append(structlog.contextvars.get_contextvars()["request_id"].encode())
    await _answer(send, b" ".join(ids))


@pytest.mark.parametrize("is_draining", [False, True])
async def test_connections_are_closed_while_draining(is_draining: bool) -> None:
    """A client that keeps its connection is sent elsewhere before the server is gone."""
    call = _Call(_echo)
    call.is_draining = is_draining
    call.put(b"")
    await call.run()

    assert call.headers.get("connection") == ("close" if is_draining else None)


async def test_a_given_request_id_goes_through() -> None:
    """The client's id reaches the application, its logs, and comes back in the answer."""
    call = _Call(_show_id, x_request_id="abc:1/2")
    call.put(b"")
    await call.run()

    assert call.headers["x-request-id"] == "abc:1/2"
    assert call.sent[1]["body"] == b"abc:1/2 abc:1/2"
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, 'quo"te', "new\nline", "ü"])
async def test_an_id_that_could_do_harm_is_replaced(given: str) -> None:
    """An id that is no plain short word is not taken into logs and headers: a new one is."""
    call = _Call(_show_id, x_request_id=given)
    call.put(b"")
    await call.run()

    new_id = call.headers["x-request-id"]
    assert new_id.startswith("req-")
    assert call.sent[1]["body"].decode() == f"{new_id} {new_id}"


async def test_requests_without_an_id_get_different_ones() -> None:
    """Each request without an id is named anew."""
    calls = [_Call(_show_id) for _ in range(2)]
    for call in calls:
        call.put(b"")
        await call.run()

    assert calls[0].headers["x-request-id"] != calls[1].headers["x-request-id"]


async def test_a_body_in_chunks_arrives_whole() -> None:
    """The application gets the whole body at once, up to the limit."""
    call = _Call(_echo)
    call.put(b"01234", more=True)
    call.put(b"", more=True)
    call.put(b"56789")
    await call.run()

    assert (call.status, call.sent[1]["body"]) == (200, b"0123456789")


async def test_a_length_over_the_limit_is_refused_unread() -> None:
    """A body that says it is too large is refused before any of it is read."""
    call = _Call(_echo, content_length="11")
    await call.run()

    assert call.num_received == 0
    assert call.status == 413
    assert call.error["code"] == "request_too_large"
    assert call.error["type"] == "invalid_request_error"
    assert "10 bytes" in call.error["message"]
    assert call.headers["content-type"] == "application/json"
    assert "x-request-id" in call.headers


async def test_a_body_that_grows_over_the_limit_is_refused() -> None:
    """Without a length, or with a false one, the body is refused when it is over the limit."""
    call = _Call(_echo, content_length="5")
    call.put(b"0" * 6, more=True)
    call.put(b"0" * 5, more=True)
    call.put(b"never read")
    await call.run()

    assert call.status == 413
    assert call.num_received == 2


async def test_a_client_that_leaves_before_its_body_ends_is_not_answered() -> None:
    """The application never runs for half a body."""
    called = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope)

    call = _Call(app)
    call.put(b"half", more=True)
    call.leave()
    await call.run()

    assert (called, call.sent) == ([], [])


async def test_a_client_that_leaves_cancels_its_work() -> None:
    """When the client leaves before its answer is whole, the application is cancelled."""
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    call = _Call(app)
    call.put(b"")
    running = asyncio.create_task(call.run())
    await settle()
    assert ends == []

    call.leave()
    await settle()

    assert ends == ["cancelled"]
    await running
    assert len(call.sent) == 2


async def test_a_client_that_has_its_answer_cancels_nothing() -> None:
    """After the last message the application may tidy up, though its client is gone."""
    tidied = asyncio.Event()
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(send)
        await tidied.wait()
        ends.append("done")

    call = _Call(app)
    call.put(b"")
    running = asyncio.create_task(call.run())
    await settle()
    call.leave()
    await settle()
    assert not running.done()

    tidied.set()
    await running

    assert ends == ["done"]


async def test_a_gate_that_is_cancelled_cancels_its_work() -> None:
    """When the server ends a request, its application ends with it."""
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
            await receive()
        finally:
            ends.append("ended")

    call = _Call(app)
    call.put(b"")
    running = asyncio.create_task(call.run())
    await settle()

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert ends == ["ended"]


async def test_what_nobody_caught_is_an_envelope_without_details() -> None:
    """An unexpected exception is a 500 in OpenAI's form whose text says nothing of it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("secret")

    call = _Call(app)
    call.put(b"")
    with structlog.testing.capture_logs():
        await call.run()

    assert call.status == 500
    assert (call.error["code"], call.error["type"]) == ("internal_error", "server_error")
    assert "secret" not in call.error["message"]


async def test_an_error_of_ours_is_rendered_with_its_headers() -> None:
    """An ApiError keeps its status, its code and Retry-After."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RateLimited("full", retry_after_seconds=3)

    call = _Call(app)
    call.put(b"")
    await call.run()

    assert (call.status, call.error["code"]) == (429, "rate_limit_exceeded")
    assert call.headers["retry-after"] == "3"
    assert int(call.headers["content-length"]) == len(call.sent[1]["body"])


async def test_an_answer_that_has_begun_gets_no_second_head() -> None:
    """An error in the middle of an answer cannot be rendered any more, and is not."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("secret")

    call = _Call(app)
    call.put(b"")
    with structlog.testing.capture_logs() as logs:
        await call.run()

    assert len(call.sent) == 1
    assert [log["event"] for log in logs] == ["request_failed", "request"]


async def test_the_access_log_tells_the_facts_and_no_content() -> None:
    """A request is logged once, with its times and what its route knows, without its body."""
    call: _Call

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["access_log"].update(model="m", prompt_tokens=3)
        call.now += 0.25
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer", "more_body": True})
        call.now += 0.25
        await send({"type": "http.response.body", "body": b""})

    call = _Call(app)
    call.put(b"question")
    with structlog.testing.capture_logs() as logs:
        await call.run()

    assert logs == [
        {
            "event": "request",
            "log_level": "info",
            "method": "POST",
            "path": "/v1/x",
            "status": 200,
            "duration_seconds": 0.5,
            "first_byte_seconds": 0.25,
            "model": "m",
            "prompt_tokens": 3,
        }
    ]


async def test_a_client_that_left_is_told_in_the_log() -> None:
    """The log tells requests whose client left from those that were answered."""
    call = _Call(_echo)
    call.leave()
    with structlog.testing.capture_logs() as logs:
        await call.run()

    assert (logs[0]["client_left"], logs[0]["status"]) == (True, None)


@pytest.mark.parametrize(
    ("method", "path", "status", "level"),
    [
        ("GET", "/metrics", 200, "debug"),
        ("GET", "/v2/health/ready", 200, "debug"),
        ("GET", "/v2/health/ready", 503, "debug"),
        ("GET", "/v1/models/m", 503, "debug"),
        ("GET", "/v2/health/ready", 500, "info"),
        ("GET", "/v1/models/m", 404, "info"),
        ("GET", "/v1/elsewhere", 200, "info"),
        ("POST", "/v1/chat/completions", 503, "info"),
        ("POST", "/v1/models/m", 200, "info"),
    ],
)
async def test_probes_and_scrapes_are_quiet_unless_they_fail(
    method: str, path: str, status: int, level: str
) -> None:
    """What is asked every few seconds is logged only when its answer is not an expected one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(send, status=status)

    call = _Call(app, path, method)
    call.put(b"")
    with structlog.testing.capture_logs() as logs:
        await call.run()

    assert [log["log_level"] for log in logs] == [level]


async def test_what_is_not_http_goes_through() -> None:
    """Lifespan and the like reach the application untouched."""
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope))

    call = _Call(app)
    call.scope = {"type": "lifespan"}
    await call.run()

    assert seen == [{"type": "lifespan"}]


@pytest.mark.parametrize("headers", [{"content_length": "10"}, {}])
async def test_a_body_without_room_is_refused(headers: dict[str, str]) -> None:
    """When all bytes are in flight, a body gets 503 with Retry-After and keeps nothing."""
    call = _Call(_echo, **headers)
    call.budget.used = call.budget.capacity - 39
    call.put(b"12345", more=True)
    call.put(b"67890")
    await call.run()

    assert (call.status, call.error["code"]) == (503, "server_overloaded")
    assert "retry-after" in call.headers
    assert call.num_received == (0 if headers else 2)
    assert call.budget.used == call.budget.capacity - 39


async def test_an_answer_counts_until_it_is_read() -> None:
    """A whole answer goes out in parts, and its request is over when its client has nearly all."""
    answer = b"a" * 200_000

    async def long(scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(send, answer)

    call = _Call(long)
    call.put(b"")
    call.connection.is_full = True
    running = asyncio.create_task(call.run())
    await settle()
    assert b"".join(message["body"] for message in call.sent[1:]) == answer
    assert max(len(message["body"]) for message in call.sent[1:]) <= 65536
    assert not running.done()
    assert call.budget.used >= len(answer)
    call.connection.note_room()
    await running
    assert call.budget.used == 0


async def test_a_client_that_leaves_with_its_answer_unread_is_gone() -> None:
    """A request that is over while its client does not read ends the connection."""
    ended = asyncio.Event()
    call = _Call(_echo)
    call.connection = ClientConnection(ended.set)
    call.scope["extensions"] = {EXTENSION: call.connection}
    call.put(b"")
    call.connection.is_full = True
    running = asyncio.create_task(call.run())
    await settle()
    assert not ended.is_set()
    running.cancel()
    await asyncio.wait((running,))
    assert ended.is_set()


async def test_a_body_that_the_connection_has_refused() -> None:
    """A body that came too slowly is logged with what its client was told: nobody has left."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    call = _Call(app)
    call.put(b"{", more=True)
    call.connection.refusal = RateLimited("slow", status=408)
    call.leave()
    with structlog.testing.capture_logs() as logs:
        await call.run()
    assert [log["status"] for log in logs] == [408]
    assert "client_left" not in logs[0]


async def test_an_answer_that_was_read_ends_no_connection() -> None:
    """What is unread once an answer was read is another's: a request that was sent at once."""
    ends: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})
        call.connection.is_full = True  # by the next answer

    call = _Call(app)
    call.connection._abort = lambda: ends.append(True)
    call.put(b"")
    await call.run()
    assert ends == []
