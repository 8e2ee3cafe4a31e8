"""Streaming load, run by a Job in the cluster: bounded clients, each one request after another.

Prints a line of JSON each second; the last one says how it went. A request has failed when its
connection did, its status is not 2xx, its stream has an error event or ends without [DONE].
The file /tmp/stop ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import aiohttp

STOP = Path("/tmp/stop")  # noqa: S108  # of a pod of its own
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
MAX_FAILURES = 20
START_SECONDS = 60


async def stream(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> str | None:
    """Send one request and read its stream; return what failed, or None."""
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status // 100 != 2:
                return f"HTTP {answer.status}: {(await answer.text())[:300]}"
            text = (await answer.read()).decode()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    if errors := [event for event in events if '"error"' in event]:
        return f"error event: {errors[0][:300]}"
    if not events or events[-1] != "[DONE]":
        return f"the stream ended without [DONE], after {len(events)} events"
    return None


async def wait_for_service(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until the Service leads somewhere: it does a moment after its first pod is ready."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                async with session.get(f"{url}/v1/models") as answer:
                    if answer.status == 200:
                        return
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.2)


async def run(environ: dict[str, str]) -> None:
    """Run all clients until the stop file or the time limit."""
    started = time.monotonic()
    counts = {"requests": 0, "failed": 0}
    failures: list[str] = []
    body = {
        "model": environ["MODEL"],
        "messages": MESSAGES,
        "max_tokens": int(environ["MAX_TOKENS"]),
        "stream": True,
        "ignore_eos": True,
    }

    def is_over() -> bool:
        return STOP.exists() or time.monotonic() - started > float(environ["MAX_SECONDS"])

    def report() -> None:
        print(json.dumps({**counts, "failures": failures}), flush=True)

    async def client(session: aiohttp.ClientSession) -> None:
        while not is_over():
            sent = time.monotonic() - started
            failure = await stream(session, environ["URL"], body)
            counts["requests"] += 1
            if failure is not None:
                counts["failed"] += 1
                if len(failures) < MAX_FAILURES:
                    ended = time.monotonic() - started
                    failures.append(f"{sent:.2f} s to {ended:.2f} s: {failure}")
                await asyncio.sleep(0.2)

    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(timeout=timeout) as keeping,
        aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)
        ) as closing,
    ):
        await wait_for_service(closing, environ["URL"])
        # Every other client keeps its connection; the others are routed anew each time.
        sessions = [keeping, closing] * int(environ["NUM_CLIENTS"])
        clients = [
            asyncio.create_task(client(session))
            for session in sessions[: int(environ["NUM_CLIENTS"])]
        ]
        while not all(task.done() for task in clients):
            await asyncio.sleep(1)
            report()
        await asyncio.gather(*clients)
    report()


if __name__ == "__main__":
    asyncio.run(run(dict(os.environ)))
