"""What has sent nothing waits for the proxy's own backend: how long, how many, how often."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import ClientSession

from openai_protocol.errors import ApiError, BadGateway, ErrorCode, InternalError, Unavailable
from openai_proxy.routing import restart_wait
from openai_proxy.routing.restart_wait import MAX_RESTARTS, OwnBackend, RestartWait
from openai_proxy.routing.router import Router
from openai_proxy.routing.upstream import Upstream
from tests.proxy.harness import CHAT, MESSAGES, until
from tests.proxy.processes import pids_in, process
from tests.proxy.test_backend import flags


def _upstream(name: str) -> Upstream:
    """Return what stands for an upstream: nothing is asked of it."""
    return cast("Upstream", name)


class Run:
    """A router whose backend the test starts and ends, and what attempts have seen."""

    def __init__(self, wait_seconds: float = 5.0) -> None:
        self.router = Router()
        self.is_restarting = True
        self.tried: list[Any] = []
        self.failures: list[ApiError] = []  # of the next attempts
        self.on_failure: Callable[[], None] = lambda: None
        self.waiting = RestartWait(
            self.router, OwnBackend(wait_seconds, lambda: self.is_restarting)
        )

    async def attempt(self, upstream: Upstream) -> str:
        self.tried.append(upstream)
        if self.failures:
            error = self.failures.pop(0)
            self.on_failure()
            raise error
        return f"answered by {upstream}"

    def ask(self, num_bytes: int = 10, *, has_sent: bool = False) -> asyncio.Task[str]:
        async def run() -> str:
            route = await self.waiting.route("m", num_bytes)
            return await self.waiting.run(route, num_bytes, self.attempt, lambda: not has_sent)

        return asyncio.create_task(run())


def _cut_off() -> ApiError:
    return BadGateway("Gone.", code=ErrorCode.UPSTREAM_CONNECTION_FAILED)


async def _started(run: Run) -> None:
    await until(lambda: run.waiting.num_waiting > 0)


async def test_a_request_waits_for_a_restart() -> None:
    """While the backend is started again a request waits, and is answered by the next one."""
    run = Run()
    run.router.use(None)
    asked = run.ask()
    await _started(run)
    run.router.use(None)  # it failed once more
    await asyncio.sleep(0)
    assert not asked.done()

    run.router.use(_upstream("next"))

    assert await asked == "answered by next"
    assert run.waiting.num_waiting == 0


async def test_a_first_start_is_not_waited_for() -> None:
    """A backend that was never ready may take minutes: 503 at once."""
    run = Run()
    run.is_restarting = False
    run.router.use(None)
    with pytest.raises(Unavailable):
        await run.ask()


@pytest.mark.parametrize("seconds", [0.0, 0.02])
async def test_the_wait_is_bounded(seconds: float) -> None:
    """Past the wait, or with 0 at once, the client is told to come back."""
    run = Run(seconds)
    run.router.use(None)
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(run.ask(), 5)
    assert caught.value.code == "model_not_ready"
    assert caught.value.retry_after_seconds is not None


async def test_few_wait_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bounds of their number and of their bytes, requests get 503 at once."""
    monkeypatch.setattr(restart_wait, "MAX_WAITING", 2)
    monkeypatch.setattr(restart_wait, "MAX_WAITING_BYTES", 100)
    run = Run()
    run.router.use(None)
    first = run.ask(60)
    await _started(run)
    with pytest.raises(Unavailable):
        await run.ask(41)
    second = run.ask(40)
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await run.ask(0)
    run.router.use(_upstream("next"))
    assert len(await asyncio.gather(first, second)) == 2


async def test_a_client_that_leaves_waits_no_more() -> None:
    """A request that is cancelled gives its place back."""
    run = Run()
    run.router.use(None)
    asked = run.ask()
    await _started(run)
    asked.cancel()
    await asyncio.wait([asked])
    assert run.waiting.num_waiting == 0


@pytest.mark.parametrize("is_noticed_first", [True, False])
async def test_a_request_outlives_its_backend(is_noticed_first: bool) -> None:
    """One whose backend ended under it is sent to the next, whoever notices the end first."""
    run = Run()
    run.router.use(_upstream("first"))
    run.failures = [_cut_off()]
    if is_noticed_first:
        run.on_failure = lambda: run.router.use(None)
    asked = run.ask()
    await until(lambda: bool(run.tried))
    if not is_noticed_first:
        await asyncio.sleep(0)
        run.router.use(None)
    await _started(run)
    run.router.use(_upstream("second"))

    assert await asked == "answered by second"
    assert run.tried == ["first", "second"]


async def test_what_has_sent_something_is_not_sent_again() -> None:
    """After its first byte a request fails with its backend."""
    run = Run()
    run.router.use(_upstream("first"))
    run.failures = [_cut_off()]
    run.on_failure = lambda: run.router.use(None)
    with pytest.raises(BadGateway):
        await run.ask(has_sent=True)


@pytest.mark.parametrize(
    "error", [InternalError("No.", code="engine_failed"), Unavailable("No.", code="queue_timeout")]
)
async def test_an_answer_is_an_answer(error: ApiError) -> None:
    """What the backend itself has answered is passed on, even if it ends then."""
    run = Run()
    run.router.use(_upstream("first"))
    run.failures = [error]
    run.on_failure = lambda: run.router.use(None)
    with pytest.raises(ApiError) as caught:
        await run.ask()
    assert caught.value is error


async def test_a_backend_that_lives_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that fails to one that goes on is an error, after a moment."""
    monkeypatch.setattr(restart_wait, "NOTICE_SECONDS", 0.02)
    run = Run()
    run.router.use(_upstream("first"))
    run.failures = [_cut_off()]
    with pytest.raises(BadGateway):
        await run.ask()
    assert run.tried == ["first"]


async def test_a_request_does_not_end_one_backend_after_another() -> None:
    """Under which three backends in a row have ended, that request fails."""
    run = Run()
    run.router.use(_upstream("0"))
    run.failures = [_cut_off() for _ in range(10)]

    def replace() -> None:
        run.router.use(_upstream(str(len(run.tried))))

    run.on_failure = replace
    with pytest.raises(BadGateway):
        await run.ask()
    assert run.tried == [str(number) for number in range(MAX_RESTARTS + 1)]


async def test_an_upstream_that_others_run_is_not_waited_for() -> None:
    """Its failures are errors at once, though the backend restarts just now."""
    run = Run()
    run.router.use(None)
    run.router.use(_upstream("theirs"), "other", ("m",))
    run.failures = [_cut_off()]
    with pytest.raises(BadGateway):
        await run.ask()


async def test_a_killed_backend_loses_nothing_that_has_not_begun(tmp_path: Path) -> None:
    """Whole answers and streams that had no byte, and what comes meanwhile, are all answered.

    A stream that had begun ends with an error event.
    """
    pids, slow = tmp_path / "pids", tmp_path / "slow"
    given = flags(
        f"pids={pids}", f"slow={slow}", "chunk=0.02", **{"backend-backoff-seconds": "0.3"}
    )
    body = {"model": "tiny", "messages": MESSAGES}
    async with (
        process(tmp_path, *given, wait_for="/health/ready") as proxy,
        ClientSession() as http,
    ):

        async def ask(path: str, **fields: Any) -> tuple[int, str]:
            async with http.post(proxy.url + path, json={**body, **fields}) as response:
                return response.status, await response.text()

        async with http.post(proxy.url + CHAT, json={**body, "stream": True}) as begun:
            await begun.content.readuntil(b"\n\n")
            slow.touch()
            asked = [asyncio.create_task(ask(CHAT, stream=bool(at % 2))) for at in range(8)]
            asked.append(asyncio.create_task(ask("/tokenize", prompt="x")))
            log = proxy.log
            await until(lambda: log.read_text().count("/v1/chat/completions") >= 9)
            os.kill(pids_in(pids)[0], signal.SIGKILL)
            slow.unlink()
            await until(lambda: proxy.answers("/health/ready", 503))
            asked += [asyncio.create_task(ask(CHAT, stream=bool(at % 2))) for at in range(4)]
            answers = await asyncio.gather(*asked)
            assert [status for status, _ in answers] == [200] * 13
            assert all("Hello" in text or "[DONE]" in text for _, text in answers)
            assert "upstream_stream_broken" in await begun.text()
        assert await proxy.end() == 0
