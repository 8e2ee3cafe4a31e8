"""What the predictor makes of a request's head before any route sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.types import Message

from http_edge.bytes_in_flight import MIB, ByteBudget
from http_edge.head_rules import HeadRules
from http_edge.hosts import HostRules
from kserve_llamacpp.api.errors import add_error_handlers
from kserve_llamacpp.api.middleware import RequestGate
from kserve_llamacpp.api.models import Models
from kserve_llamacpp.api.routes import application
from openai_protocol.errors import ApiError
from openai_protocol.request_limits import RequestLimits

HOST = (b"host", b"localhost")
PREDICT = b"/v1/models/org%2Fname:predict"


async def ask(
    raw_path: bytes, *headers: tuple[bytes, bytes], method: str = "GET", body: bytes = b""
) -> tuple[int, Any, list[str]]:
    """Ask the whole application; returns status, decoded body, and the models that were meant."""
    meant: list[str] = []
    sent: list[Message] = []

    def find(name: str) -> None:
        meant.append(name)

    async def predict(model_name: str) -> None:
        meant.append(model_name)
        raise ApiError("reached", code="reached", status=404)

    models = Models(lambda: ["org/name"], find, lambda: None)
    app = application(models, predict, RequestLimits(), has_docs=False)
    add_error_handlers(app)
    gate = RequestGate(
        app,
        max_body_bytes=100,
        head_rules=HeadRules(HostRules("127.0.0.1"), "--allowed_hosts"),
        budget=ByteBudget(16 * MIB),
    )
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop(0) if messages else await _never()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "http_version": "1.1",
        "path": unquote(raw_path.decode()),
        "raw_path": raw_path,
        "query_string": b"",
        "root_path": "",
        "headers": [HOST, *headers] if not any(name == b"host" for name, _ in headers) else headers,
    }
    await gate(scope, receive, send)
    text = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(text), meant


async def _never() -> Any:
    return await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    "name",
    [
        *("X-Tenant", "Authorization", "X-Api-Key", "X-Request-Id", "X-Resumable", "Content-Type"),
        *("Content-Length", "Inference-Header-Content-Length", "Ce-Id"),
    ],
)
@pytest.mark.parametrize("path", [b"/v1/chat/completions", PREDICT])
async def test_headers_given_twice(path: bytes, name: str) -> None:
    """A header that routes act on is given once: OpenAI's took the first of two, V1 the last."""
    twice = [(name.lower().encode(), b"1")] * 2
    status, body, meant = await ask(path, *twice, method="POST", body=b"{")
    assert (status, body["error"]["param"], meant) == (400, name, [])


@pytest.mark.parametrize(
    ("value", "says"), [(b"abc", "at most"), (b"-1", "at most"), (b"3", "at most"), (b"2", None)]
)
async def test_length_of_the_json_part(value: bytes, says: str | None) -> None:
    """A length of V2's JSON part that is no part of the body is 400 by its name, not 500."""
    name = b"inference-header-content-length"
    status, body, meant = await ask(PREDICT, (name, value), method="POST", body=b"{}")
    if says is None:
        assert meant == ["org/name"]
        return
    assert (status, body["error"]["param"]) == (400, "Inference-Header-Content-Length")
    assert says in body["error"]["message"]


async def test_hosts_of_others() -> None:
    """On loopback a page's own name is refused, and a request without or with two hosts is."""
    status, body, _ = await ask(b"/v1/models", (b"host", b"rebound.example"))
    assert (status, body["error"]["code"]) == (403, "host_not_allowed")
    assert (await ask(b"/v1/models", HOST, HOST))[0] == 400


async def test_transfer_codings() -> None:
    """A transfer coding that is not known is 501."""
    coding = (b"transfer-encoding", b"gzip, chunked")
    assert (await ask(b"/v1/models", coding, method="POST"))[0] == 501


@pytest.mark.parametrize(
    ("path", "method", "name"),
    [
        (b"/v1/models/org%2Fname", "GET", "org/name"),
        (b"/openai/v1/models/org%2fname", "GET", "org/name"),
        (b"/v1/models/org%252Fname", "GET", "org%2Fname"),
        (b"/v1/models/50%25", "GET", "50%"),
        (PREDICT, "POST", "org/name"),
        (b"/v2/models/org%2Fname", "GET", "org/name"),
        (b"/v2/models/org%2Fname/ready", "GET", "org/name"),
        (b"/v1/models/org/name", "GET", None),
        (b"/v1%2Fmodels", "GET", None),
        (b"/v1/models%2Forg", "GET", None),
        (b"/v2/models/a/..%2fready", "GET", None),
        (b"/v2/health/live/../ready", "GET", None),
        (b"/v2/%2e%2e/metrics", "GET", None),
        (b"/v2//models/name", "GET", None),
    ],
)
async def test_paths(path: bytes, method: str, name: str | None) -> None:
    """An encoded slash is part of a model's name, and no path is another one in disguise."""
    status, body, meant = await ask(path, method=method, body=b"{}")
    assert status == 404
    if name is None:
        assert (meant, body.get("error", {}).get("code")) == ([], "unknown_url")
    else:
        assert meant == [name]
