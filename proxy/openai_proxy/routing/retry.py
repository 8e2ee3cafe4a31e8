"""One more attempt, on another endpoint, for what failed before its client got a byte."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from openai_protocol.errors import ApiError, ErrorCode
from openai_proxy.dialects.base import AnswerHead, PassedError
from openai_proxy.routing.endpoints import Endpoint
from openai_proxy.routing.upstream import Upstream

Result = TypeVar("Result")
# Failures of connections: refused, reset, ended. An answer, also a bad one, is not asked for twice.
_CONNECTION = frozenset({ErrorCode.UPSTREAM_CONNECTION_FAILED, ErrorCode.UPSTREAM_STREAM_BROKEN})

log = structlog.get_logger("openai_proxy")


async def with_one_retry(
    upstream: Upstream,
    attempt: Callable[[Endpoint], Awaitable[Result]],
    can_retry: Callable[[], bool] = lambda: True,
    on_retry: Callable[[], None] = lambda: None,
) -> Result:
    """Run an attempt on an endpoint; where its connection fails, run it once more on another.

    `can_retry` tells whether the client has got nothing yet. Raises ApiError, as the last attempt.
    """
    endpoint = await upstream.choose()
    try:
        return await attempt(endpoint)
    except ApiError as error:
        is_answer = isinstance(error, PassedError)
        if is_answer or error.code not in _CONNECTION or not can_retry():
            raise
        log.debug("retrying", endpoint=endpoint.host, code=str(error.code))
    on_retry()
    return await attempt(await upstream.choose(endpoint))


async def read(
    upstream: Upstream, path: str, timeout_seconds: float, request_id: str = ""
) -> tuple[AnswerHead, bytes]:
    """Get a path, with one retry; return the answer's head and body. Raises ApiError."""

    async def attempt(endpoint: Endpoint) -> tuple[AnswerHead, bytes]:
        async with upstream.get(endpoint, path, timeout_seconds, request_id) as answer:
            return answer.head, await answer.body()

    return await with_one_retry(upstream, attempt)
