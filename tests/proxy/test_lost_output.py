"""A proxy serves on when nobody takes what it says: a full disk, a reader that left or sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from openai_proxy.console import say, say_beside
from tests.proxy.harness import StandIn, refused_port, until
from tests.proxy.processes import _status, environment


@contextmanager
def nobody_reads(what: str) -> Iterator[int]:
    """A descriptor to write to, of which nothing is taken."""
    if what == "full disk":
        opened = [os.open("/dev/full", os.O_WRONLY)]
    else:
        reader, writer = os.pipe()
        opened = [writer, reader]
        if what == "reader left":
            os.close(opened.pop())
        else:  # one that sleeps, behind a full pipe
            os.set_blocking(writer, False)
            with contextlib.suppress(BlockingIOError):
                while os.write(writer, b"x" * 4096):
                    pass
            os.set_blocking(writer, True)
    try:
        yield opened[0]
    finally:
        for fd in opened:
            os.close(fd)


@pytest.mark.parametrize("what", ["full disk", "reader left"])
async def test_serving_on(upstream: StandIn, what: str) -> None:
    """It becomes ready, which the banner tells, answers, and ends well when it is told to."""
    port = refused_port()
    flags = ["--host", "127.0.0.1", "--port", str(port), "--upstream-url", upstream.url]
    with nobody_reads(what) as out:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "openai_proxy", *flags, "--drain-delay-seconds", "0"),
            stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
            env=environment(),
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}/health/ready"

            async def is_ready() -> bool:
                assert child.returncode is None, f"it has ended with {child.returncode}"
                return await asyncio.to_thread(_status, url) == 200

            await until(is_ready, 20)
            await asyncio.sleep(0.2)
            assert await is_ready()
            child.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(child.wait(), 10) == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()


async def test_an_error_that_cannot_be_said() -> None:
    """The exit code tells it alone."""
    with nobody_reads("full disk") as out:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "openai_proxy", "--port", "x"), stdout=out, stderr=out,
            env=environment(),
        )  # fmt: skip
        status = await asyncio.wait_for(child.wait(), 20)
    assert status == 2


def test_a_reader_that_sleeps() -> None:
    """What is said beside waits for nobody, and comes out when the reader wakes."""
    with nobody_reads("reader sleeps") as out, os.fdopen(os.dup(out), "w") as stream:
        began = time.monotonic()
        say_beside("text", stream)
        assert time.monotonic() - began < 5


def test_saying_something(capfd: pytest.CaptureFixture[str]) -> None:
    """What is said comes out where somebody reads it, at once."""
    say("one\n", sys.stdout)
    say("two\n", sys.stderr)
    assert capfd.readouterr() == ("one\n", "two\n")
