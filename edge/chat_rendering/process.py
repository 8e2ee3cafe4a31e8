"""One renderer's process after another: started when it is needed, killed when it is late."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from chat_rendering.frames import LENGTH, decode, encode
from http_edge import cgroup

# A process is given a quarter of what there is: where it takes more, the kernel ends its container.
LEAST_MEMORY_BYTES = 128 * 1024 * 1024
_SHARE_OF_MEMORY = 4
# What a process has once had it keeps: after a larger chat it is not used again.
KEPT_FRAME_BYTES = 4 * 1024 * 1024
# One that takes longer gives way to others on the machine from then on.
FAST_SECONDS = 1.0
FAST_LOAD_SECONDS = 4.0  # on a busy machine, too
_LOW_PRIORITY = 10  # a tenth of a busy processor

COMMAND = (sys.executable, "-P", "-m", "chat_rendering.child")


class Late(Exception):
    """The process did not answer in time, and was killed."""


class Lost(Exception):
    """The process could not be started, or ended by itself."""


@dataclass(frozen=True)
class Template:
    """A template, and what a process may take for it.

    Times are CPU seconds of one frame each, which the kernel counts in whole ones. `patience` times
    as long may pass, for others may be busy.
    """

    source: str
    bos_token: str
    eos_token: str
    load_seconds: float = 10.0  # the process's own start among them
    render_seconds: float = 5.0
    patience: float = 6.0
    max_characters: int = 16 * 1024 * 1024
    max_memory_bytes: int = 512 * 1024 * 1024


def memory_limit(most: int, available: int | None) -> int:
    """Return how many bytes a process may have where so many are available (None: unknown)."""
    if available is None:
        return most
    return min(most, max(LEAST_MEMORY_BYTES, available // _SHARE_OF_MEMORY))


class RendererProcess:
    """Owns a child process that has loaded a template; one caller at a time."""

    def __init__(self, template: Template, command: tuple[str, ...] = COMMAND) -> None:
        self._template = template
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._gives_way = False

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return None if self._process is None else self._process.pid

    async def load(self) -> Any:
        """Start a process and let it compile the template; return its answer.

        Raises Late and Lost.
        """
        await self.close()
        template = self._template
        self._gives_way = False
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a terminal's signals are the server's business
            )
        except OSError as error:
            raise Lost(str(error)) from None
        memory = memory_limit(template.max_memory_bytes, cgroup.available_memory())
        frame = encode(vars(template) | {"max_memory_bytes": memory})
        return await self._ask(frame, template.load_seconds, FAST_LOAD_SECONDS)

    async def render(self, messages: list[dict[str, Any]]) -> Any:
        """Return the process's answer to a chat; raises Late and Lost.

        The template was loaded before: a process that is gone since is started anew.
        """
        try:
            frame = encode(messages)
        except ValueError:
            return {"reason": "too_long", "text": ""}
        if self._process is None and "reason" in await self.load():
            await self.close()
            return {"reason": "failed", "text": ""}
        answer = await self._ask(frame, self._template.render_seconds, FAST_SECONDS)
        has_no_memory = answer.get("reason") == "memory"  # it may not have read all of the chat
        if len(frame) > KEPT_FRAME_BYTES or self._gives_way or has_no_memory:
            await self.close()
        return answer

    async def _ask(self, frame: bytes, seconds: float, fast_seconds: float) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        fast = asyncio.get_running_loop().call_later(fast_seconds, self._give_way, process.pid)
        try:
            async with asyncio.timeout(seconds * self._template.patience):
                process.stdin.write(frame)
                await process.stdin.drain()
                (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
                return decode(await process.stdout.readexactly(length))
        except TimeoutError:
            await self.close()
            raise Late from None
        except (asyncio.IncompleteReadError, OSError) as error:
            await self.close()
            if process.returncode == -signal.SIGXCPU:
                raise Late from None
            raise Lost(str(error)) from None
        except BaseException:  # half a frame may be on its way
            await self.close()
            raise
        finally:
            fast.cancel()

    def _give_way(self, pid: int) -> None:
        """Let a process that takes long have what CPU time others leave."""
        self._gives_way = True
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _LOW_PRIORITY)

    async def close(self) -> None:
        """Kill the process, if there is one, and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.shield(process.wait())
