"""The end of a proxy whose starter is gone: it sees so by its stdin.

An Erlang port, an editor or a script starts the proxy and holds a pipe to its stdin; when that
closes, on purpose or because the starter was killed, the proxy drains and ends as on SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import Callable

import structlog

log = structlog.get_logger("openai_proxy")

STDIN = 0
OUTPUTS = (1, 2)
EXIT_BAD_CONFIGURATION = 2
CHUNK_BYTES = 64 * 1024
# Who ends closes one pipe after the other.
CLOSING_SECONDS = 0.05


class StdinError(Exception):
    """stdin cannot be watched; the text names the setting."""

    exit_code = EXIT_BAD_CONFIGURATION


async def stop_when_closed(stop: Callable[[], None]) -> None:
    """Call `stop` once stdin is closed; what comes in before is thrown away. Never returns.

    Raises StdinError where stdin is nothing that stays open.
    """
    if not _stays_open():
        raise StdinError(
            "--exit-on-stdin-close needs a stdin that its starter keeps open, such as a pipe; "
            "this one is a file, /dev/null or closed"
        )
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def read() -> None:
        try:
            is_open = bool(os.read(STDIN, CHUNK_BYTES))
        except BlockingIOError:
            return
        except OSError:
            is_open = False
        if not is_open:
            loop.remove_reader(STDIN)
            closed.set()

    loop.add_reader(STDIN, read)
    try:
        await closed.wait()
    finally:
        loop.remove_reader(STDIN)
    await asyncio.sleep(CLOSING_SECONDS)
    silence_broken_outputs()
    log.info("draining", stdin="closed")
    stop()
    while True:
        await asyncio.sleep(CLOSING_SECONDS)
        silence_broken_outputs()


def silence_broken_outputs() -> None:
    """Let what is written to a pipe that nobody reads any more vanish, instead of failing.

    Who closes our stdin often closes stdout and stderr with it; the end must go well all the same.
    """
    poll = select.poll()
    for output in OUTPUTS:
        poll.register(output, 0)  # POLLERR and POLLNVAL are always told
    for output, _ in poll.poll(0):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)
        if nowhere != output:
            os.close(nowhere)


def _stays_open() -> bool:
    try:
        mode = os.fstat(STDIN).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(STDIN)
