"""How a backend looks from outside: is its port open, is its model loaded, is it alive?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

import structlog

from openai_protocol.errors import ApiError
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy.backends import ports
from openai_proxy.backends.base import Checks, Life
from openai_proxy.backends.kind import Backend
from openai_proxy.dialects.base import CHAT, COMPLETIONS, Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai_proxy.assembly import Assembly
    from openai_proxy.routing.upstream import Upstream

log = structlog.get_logger("openai_proxy.backend")

LOOK_SECONDS = 5.0
MAX_STATUS_LINE_BYTES = 1024
# Try again: too early, too many.
_NOT_YET = frozenset({408, 425, 429})


def checks(
    backend: Backend,
    health_path: str | None,
    warm_up_seconds: float,
    assembly: Callable[[], Awaitable[Assembly]],
) -> Checks:
    """Return how to look at a backend; `health_path` as in its kind, or as configured."""

    async def is_loaded(url: str) -> bool:
        if health_path is None:
            return await is_open(url)
        return await status_of(url, health_path) == 200

    async def warm_up(url: str) -> str | None:
        upstream = (await assembly()).backend(url)
        model = backend.model or backend.choose_model(await listed(upstream)) or "model"
        call = first_call(model, backend.warm_up_path, upstream.dialect.endpoints)
        return model if await answers(upstream, call, warm_up_seconds) else None

    async def life(url: str, seconds: float) -> Life:
        own = backend.liveness_path
        path = own or health_path
        status = await status_of(url, path or "/", seconds)
        if status is None:
            return Life.SILENT
        if status < 500 or path is None:
            return Life.ALIVE
        return Life.OVER if own is not None else Life.SILENT

    def received(url: str) -> ports.Received:
        return ports.received(urlsplit(url).port or 0)

    return Checks(is_loaded, warm_up, is_open, life, received)


async def is_open(url: str) -> bool:
    """Tell whether its port takes connections; a server that is too busy to do so just now does."""
    try:
        async with _connection(url):
            return True
    except ConnectionRefusedError:
        return False
    except (OSError, TimeoutError):
        return True


async def status_of(url: str, path: str, seconds: float = LOOK_SECONDS) -> int | None:
    """Return the status of a GET, at the root of its URL; None where there is no answer."""
    with suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(seconds), _connection(url) as (reader, writer):
            host = urlsplit(url).netloc
            head = f"GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\nconnection: close\r\n"
            writer.write(f"{head}\r\n".encode())
            words = (await reader.readline()).split(maxsplit=2)
            if len(words) > 1 and words[0].startswith(b"HTTP/1."):
                return int(words[1])
    return None


@asynccontextmanager
async def _connection(
    url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(url)
    async with asyncio.timeout(LOOK_SECONDS):
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port, limit=MAX_STATUS_LINE_BYTES
        )
    try:
        if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
            # With nobody there, the kernel may give the connection that very port for its own end.
            raise ConnectionRefusedError
        yield reader, writer
    finally:
        writer.transport.abort()


async def listed(upstream: Upstream) -> tuple[str, ...]:
    """Return the models that it lists, none where it has no such list."""
    try:
        endpoint = await upstream.choose()
        path = upstream.dialect.models_path
        async with upstream.get(endpoint, path, LOOK_SECONDS) as answer:
            body = await answer.body()
            models = upstream.dialect.models(body) if answer.head.status == 200 else None
    except ApiError:
        return ()
    return models or ()


async def answers(upstream: Upstream, call: Call, timeout_seconds: float) -> bool:
    """Have it generate a token; tell whether it is as warm as it gets.

    So it is, too, when it refuses to: it may serve something else than chats and completions.
    """
    try:
        request = upstream.dialect.request(call)
    except ApiError as error:
        log.info("not_warmed_up", code=str(error.code))
        return True
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            upstream.post(await upstream.choose(), request, str(uuid4())) as answer,
        ):
            text = await answer.body()
            if answer.head.status == 200:
                upstream.dialect.answer(call, answer.head, text)
                return True
            log.warning("warm_up_failed", status=answer.head.status)
            return 400 <= answer.head.status < 500 and answer.head.status not in _NOT_YET
    except (ApiError, TimeoutError):
        log.warning("warm_up_unanswered")
    return False


def first_call(model: str, path: str, served: frozenset[str]) -> Call:
    """Return a request for one token; with the other of both paths where `path` is not served."""
    if path not in served:
        path = CHAT if path == COMPLETIONS else COMPLETIONS
    asked: dict[str, object] = {"model": model, "max_tokens": 1}
    if path == COMPLETIONS:
        body = json.dumps({**asked, "prompt": "Hello"}).encode()
        completion = CompletionRequest.model_validate_json(body)
        return Call(path, body, completion, model=model, upstream_model=model)
    body = json.dumps({**asked, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    chat = ChatCompletionRequest.model_validate_json(body)
    return Call(path, body, chat, model=model, upstream_model=model)
