"""Prompts that the operator names: all tenants share their cells in the prefix cache."""

from __future__ import annotations

import asyncio
import os.path
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from kserve_llamacpp.errors import ConfigurationError
from kserve_llamacpp.wire.frames import SharedText
from openai_protocol.errors import InvalidRequest, RateLimited, Unavailable
from openai_protocol.requests import Message

MAX_PROMPTS = 64
MAX_BYTES = 256 << 10  # of all together: they are tokenized while the model is loaded

# What comes after a prompt in a conversation: what does not depend on it is the prompt's own part.
_COMING = (("", "a"), ("", "1"), ("a", "a"), (" a", "a"), ("\n\na", "a"))
_REFRESH_SECONDS = 60.0
_RETRY_SECONDS = 10.0

Render = Callable[[list[Message]], Awaitable[str]]


@dataclass(frozen=True)
class NamedPrompt:
    """A system prompt, or the beginning of one; `name` is its file's."""

    name: str
    text: str


def read_shared_prompts(path: str | None) -> tuple[NamedPrompt, ...]:
    """Read a file that holds a prompt, or every file of a folder; hidden ones are left out.

    Line ends at a file's end do not count. Raises ConfigurationError that names the flag.
    """
    if path is None:
        return ()
    place = Path(path)
    try:
        files = _files(place)
        size = sum(file.stat().st_size for file in files)
        if len(files) > MAX_PROMPTS or size > MAX_BYTES:
            raise ConfigurationError(
                f"--shared_prompts: {place} has {len(files)} prompts of {size} bytes together, but "
                f"at most {MAX_PROMPTS} of {MAX_BYTES} bytes may be shared: name those alone that "
                "several tenants use"
            )
        prompts = [NamedPrompt(f.name, f.read_bytes().decode().rstrip("\r\n")) for f in files]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--shared_prompts: cannot read {place}: {error}: name a file with a prompt in UTF-8, "
            "or a folder of such files"
        ) from None
    for prompt in prompts:
        if not prompt.text.strip():
            raise ConfigurationError(
                f"--shared_prompts: {prompt.name} has no text: write a prompt into it, or remove it"
            )
    return tuple(prompts)


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    files = sorted(f for f in place.iterdir() if f.is_file() and not f.name.startswith("."))
    if not files:
        raise ConfigurationError(
            f"--shared_prompts: there is no file in the folder {place}: put a file with a prompt "
            "there, or leave the flag out"
        )
    return files


class PromptSharing:
    """Tells each engine which beginnings all tenants share; owner: the model, on its event loop.

    A template that writes the date renders other beginnings tomorrow: then the engine is told
    again.
    """

    def __init__(
        self,
        prompts: Sequence[NamedPrompt],
        render: Render,
        tell: Callable[[list[SharedText]], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`render` is the model's chat template; `tell` tells the running engine."""
        self._prompts = prompts
        self._render = render
        self._tell = tell
        self._now = clock
        self._sleep = sleep
        self._bos_token = ""
        self._has_date = False
        self._told: list[SharedText] = []
        self._told_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def engine_ready(self, bos_token: str, has_date: bool) -> None:
        """Tell a new engine; `has_date` says that what is rendered hangs on the time."""
        self._bos_token, self._has_date = bos_token, has_date
        self._told = []
        self._begin()

    def refresh(self) -> None:
        """Tell the engine again, if the time may have changed what is rendered."""
        if self._has_date and self._now() >= self._told_at + _REFRESH_SECONDS:
            self._begin()

    async def stop(self) -> None:
        """Tell nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _begin(self) -> None:
        if not self._prompts:
            return
        self._told_at = self._now()
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._share(), name="prompt-sharing")

    async def _share(self) -> None:
        try:
            texts = await self._texts()
        except Exception:  # without it each tenant computes the prompts for itself
            structlog.get_logger("model").exception("prompt_sharing_failed")
            return
        if texts != self._told:
            self._told = texts
            self._tell(texts)

    async def _texts(self) -> list[SharedText]:
        while True:
            try:
                return await shared_texts(self._prompts, self._render, self._bos_token)
            except (Unavailable, RateLimited):  # the template is still compiled, or others render
                await self._sleep(_RETRY_SECONDS)


async def shared_texts(
    prompts: Sequence[NamedPrompt], render: Render, bos_token: str
) -> list[SharedText]:
    """Return how requests begin that have one of these prompts: conversations, and bare texts.

    A conversation's beginning ends with the prompt. A prompt that the template does not put first
    is shared as a bare text alone, which is logged. Raises ApiError where there is no answer yet.
    """
    texts = []
    for prompt in prompts:
        texts.append(SharedText(prompt.text, add_special=True))
        beginning = await _beginning(prompt.text, render)
        if beginning is None:
            structlog.get_logger("model").warning(
                "shared_prompt_unused",
                prompt=prompt.name,
                hint="the chat template does not put it first: conversations do not share it",
            )
            continue
        # as for any conversation: most templates write the first token themselves
        has_bos = bool(bos_token) and beginning.startswith(bos_token)
        texts.append(SharedText(beginning, add_special=not has_bos))
    return texts


async def _beginning(prompt: str, render: Render) -> str | None:
    """Return how conversations begin with a system prompt, up to its end; None: not with it."""
    try:
        rendered = [
            await render([_message("system", prompt + ending), _message("user", user)])
            for ending, user in _COMING
        ]
    except InvalidRequest:  # the template refuses it, or there is none
        return None
    beginning = os.path.commonprefix(rendered)  # noqa: RUF071 - texts, by their characters
    return beginning if prompt.strip() in beginning else None


def _message(role: str, content: str) -> Message:
    return Message.model_validate({"role": role, "content": content})
