"""When a request is tried again, after which wait, and what its client is told in the end."""

from __future__ import annotations

from typing import Any

import pytest

from openai_protocol.errors import (
    ApiError,
    BadGateway,
    DeadlineExceeded,
    ErrorCode,
    RateLimited,
    Unavailable,
)
from openai_proxy.routing.endpoints import Endpoint
from openai_proxy.routing.retry import Refused, RetryPolicy, with_retries

POLICY = RetryPolicy(max_retries=3, backoff_seconds=1, cap_seconds=5)
RESET = BadGateway("reset", code=ErrorCode.UPSTREAM_CONNECTION_FAILED)


def busy(status: int = 503, retry_after: float | None = None) -> Refused:
    return Refused(status, Unavailable("busy", retry_after_seconds=retry_after))


@pytest.mark.parametrize(
    ("num_failed", "failure", "wait"),
    [
        (1, RESET, 0),  # another endpoint is there
        (2, RESET, 1),
        (3, RESET, 2),
        (9, RESET, 2.5),  # the cap
        (1, busy(), 0.5),
        (2, busy(502), 1),
        (1, busy(retry_after=4), 4),
        (1, busy(retry_after=6), None),  # longer than the cap
        (1, Refused(429, RateLimited("full", retry_after_seconds=2)), 2),
        (1, Refused(429, RateLimited("full")), None),
        (1, Refused(500, BadGateway("no")), None),
        (1, Refused(504, DeadlineExceeded("late")), None),
        (1, DeadlineExceeded("slow"), None),
        (1, BadGateway("?", code=ErrorCode.UPSTREAM_INVALID_RESPONSE), None),
    ],
)
def test_waits(num_failed: int, failure: ApiError | Refused, wait: float | None) -> None:
    """Waits double, are spread by chance, and follow Retry-After; what cannot help is not tried."""
    assert POLICY.wait(num_failed, failure, chance=0.5) == wait


class Fake:
    """An upstream whose endpoints fail as told; it notes which were tried, and the waits."""

    def __init__(self, *failures: ApiError | Refused | None) -> None:
        self.failures = list(failures)
        self.tried: list[str] = []
        self.waits: list[float] = []

    async def choose(self, failed: Endpoint | None = None) -> Endpoint:
        return Endpoint("b" if failed is not None and failed.host == "a" else "a")

    async def attempt(self, endpoint: Endpoint) -> str:
        self.tried.append(endpoint.host)
        failure = self.failures.pop(0)
        if failure is not None:
            raise failure
        return "answer"

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def run(self, policy: RetryPolicy = POLICY, **settings: Any) -> str:
        upstream: Any = self
        return await with_retries(
            upstream, self.attempt, policy, sleep=self.sleep, chance=lambda: 1.0, **settings
        )


async def test_others_are_tried() -> None:
    """Each attempt goes to another endpoint than the last, and the first that answers counts."""
    fake = Fake(RESET, busy(), None)

    assert await fake.run() == "answer"
    assert (fake.tried, fake.waits) == (["a", "b", "a"], [2.0])


async def test_spent_retries_are_told() -> None:
    """When all attempts have failed, the client's own library is asked not to begin anew."""
    fake = Fake(*[busy() for _ in range(4)])
    with pytest.raises(Unavailable) as caught:
        await fake.run()

    assert len(fake.tried) == 4
    assert caught.value.headers()["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("failure", "policy", "can_retry"),
    [
        (Refused(500, BadGateway("no")), POLICY, True),
        (busy(retry_after=60), POLICY, True),
        (busy(), RetryPolicy(max_retries=0), True),
        (RESET, POLICY, False),
    ],
)
async def test_no_word_where_nothing_was_tried(
    failure: ApiError | Refused, policy: RetryPolicy, can_retry: bool
) -> None:
    """What was not tried again says nothing of retries: the client may try by its own rules."""
    fake = Fake(failure)
    with pytest.raises(ApiError) as caught:
        await fake.run(policy, can_retry=lambda: can_retry)

    assert fake.tried == ["a"]
    assert "x-should-retry" not in caught.value.headers()
