"""One renderer's process after another: started when it is needed, killed when it is late."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from typing import Any

from chat_rendering.frames import LENGTH, decode, encode

COMMAND = (sys.executable, "-P", "-m", "chat_rendering.child")


class Late(Exception):
    """The process did not answer in time, and was killed."""


class Lost(Exception):
    """The process could not be started, or ended by itself."""


@dataclass(frozen=True)
class Template:
    """A template, and what a process may take for it; times in seconds, of one frame each."""

    source: str
    bos_token: str
    eos_token: str
    load_seconds: float = 10.0  # the process's own start among them
    render_seconds: float = 5.0
    max_characters: int = 16 * 1024 * 1024
    max_memory_bytes: int = 512 * 1024 * 1024


class RendererProcess:
    """Owns a child process that has loaded a template; one caller at a time."""

    def __init__(self, template: Template, command: tuple[str, ...] = COMMAND) -> None:
        self._template = template
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

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
        return await self._ask(encode(vars(template)), template.load_seconds)

    async def render(self, messages: list[dict[str, Any]]) -> Any:
        """Return the process's answer to a chat; raises Late and Lost.

        The template was loaded before: a process that is gone since is started anew.
        """
        try:
            frame = encode(messages)
        except ValueError:
            return {"reason": "too_long", "text": ""}
        if self._process is None:
            await self.load()
        return await self._ask(frame, self._template.render_seconds)

    async def _ask(self, frame: bytes, seconds: float) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(frame)
                await process.stdin.drain()
                (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
                return decode(await process.stdout.readexactly(length))
        except TimeoutError:
            await self.close()
            raise Late from None
        except (asyncio.IncompleteReadError, OSError) as error:
            await self.close()
            raise Lost(str(error)) from None
        except BaseException:  # half a frame may be on its way
            await self.close()
            raise

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
