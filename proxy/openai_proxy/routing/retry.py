"""More attempts for what failed before its client got a byte: bounded, spread, on other endpoints.

What is tried again: a connection that fails, an answer 502 or 503 (what stands before an upstream,
or the upstream itself, cannot serve just now), and 429 that says when to come back. Nothing else:
an upstream that is slow is not asked twice, and what it refuses it will refuse again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from openai_protocol.errors import ApiError, ErrorCode
from openai_proxy.dialects.base import AnswerHead
from openai_proxy.routing.endpoints import Endpoint
from openai_proxy.routing.upstream import Upstream

Result = TypeVar("Result")
_CONNECTION = frozenset({ErrorCode.UPSTREAM_CONNECTION_FAILED, ErrorCode.UPSTREAM_STREAM_BROKEN})
_BUSY = frozenset({502, 503})

log = structlog.get_logger("openai_proxy")


class Refused(Exception):
    """An upstream's answer with an error status, and what the client is to be told."""

    def __init__(self, status: int, error: ApiError) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.error = error


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after which waits; times in seconds."""

    max_retries: int = 1
    backoff_seconds: float = 0.2
    cap_seconds: float = 5.0

    def wait(self, num_failed: int, failure: ApiError | Refused, chance: float) -> float | None:
        """Return how long to wait before the next attempt; None where there is to be none.

        `num_failed` attempts have failed; `chance` (0 to 1) spreads those that failed together.
        The first connection that fails is tried again at once: another endpoint is there.
        """
        if not self._can_help(failure):
            return None
        error = failure.error if isinstance(failure, Refused) else failure
        if error.retry_after_seconds is not None:
            asked = error.retry_after_seconds
            return asked if asked <= self.cap_seconds else None
        if num_failed == 1 and not isinstance(failure, Refused):
            return 0.0
        longest: float = self.backoff_seconds * 2 ** (num_failed - 1)
        return min(longest, self.cap_seconds) * chance

    @staticmethod
    def _can_help(failure: ApiError | Refused) -> bool:
        if isinstance(failure, Refused):
            has_time = failure.error.retry_after_seconds is not None
            return failure.status in _BUSY or (failure.status == 429 and has_time)
        return failure.code in _CONNECTION


ONE_RETRY = RetryPolicy(max_retries=1)


async def with_retries(
    upstream: Upstream,
    attempt: Callable[[Endpoint], Awaitable[Result]],
    policy: RetryPolicy = ONE_RETRY,
    can_retry: Callable[[], bool] = lambda: True,
    on_retry: Callable[[], None] = lambda: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    chance: Callable[[], float] = random.random,
) -> Result:
    """Run an attempt on an endpoint, and again on others where that may help.

    `can_retry` tells whether the client has got nothing yet. An attempt raises ApiError, or Refused
    for an answer. Raises ApiError, as the last attempt: once retries are spent it tells clients
    that try again by themselves not to.
    """
    endpoint: Endpoint | None = None
    num_failed = 0
    while True:
        endpoint = await upstream.choose(endpoint)
        try:
            return await attempt(endpoint)
        except (ApiError, Refused) as failure:
            num_failed += 1
            error = failure.error if isinstance(failure, Refused) else failure
            if not policy.max_retries or not can_retry():
                raise error from None
            wait = policy.wait(num_failed, failure, chance())
            if wait is None:
                raise error from None
            if num_failed > policy.max_retries:
                error.should_retry = False
                raise error from None
            log.debug("retrying", endpoint=endpoint.host, code=str(error.code), wait_seconds=wait)
            del error  # which has this frame: a cycle would hold the request's body
        on_retry()
        if wait:
            await sleep(wait)


async def read(
    upstream: Upstream, path: str, timeout_seconds: float, request_id: str = ""
) -> tuple[AnswerHead, bytes]:
    """Get a path, with one retry; return the answer's head and body. Raises ApiError."""

    async def attempt(endpoint: Endpoint) -> tuple[AnswerHead, bytes]:
        async with upstream.get(endpoint, path, timeout_seconds, request_id) as answer:
            return answer.head, await answer.body()

    return await with_retries(upstream, attempt)
