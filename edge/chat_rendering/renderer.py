"""From chats to prompts: small ones of a plain template in this process, others in one apart."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import structlog

from chat_rendering.process import Late, Lost, RendererProcess, Template
from chat_rendering.turns import Full, Turns
from openai_protocol.chat_template import template_failed, template_refused
from openai_protocol.errors import ErrorCode, RateLimited, Unavailable
from openai_protocol.message_template import (
    MessageTemplate,
    OutputTooLong,
    TemplateError,
    TemplateRefusal,
)
from openai_protocol.plain_messages import plain
from openai_protocol.requests import Message

# What is rendered in the server's own process: a tenth of a millisecond or two.
INLINE_CHARACTERS = 16 * 1024
INLINE_MESSAGES = 64
INLINE_OUTPUT = 64 * 1024
INLINE_SECONDS = 0.02  # of CPU time: a container that is throttled says nothing of a template
# Larger chats wait for each other, and nobody else for them.
LARGE_CHARACTERS = 64 * 1024
LARGE_MESSAGES = 128
MAX_WAITING = 64
MAX_SOURCE = 1024 * 1024

log = structlog.get_logger("chat_rendering")


class TemplateInvalid(ValueError):
    """A template that cannot be used, and why."""


class Renderer:
    """Renders chats by one template; owner: the model, or the upstream, on its event loop.

    A template is a program of strangers: it is compiled and run in processes of its own, with
    limits of time, memory and output. Only a template that cannot take long (`template_cost`) is
    also compiled here, for small chats; one that was slow in spite of it is not used again.
    """

    def __init__(
        self,
        template: Template,
        start: Callable[[Template], RendererProcess] = RendererProcess,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`start` makes a process, `clock` tells CPU seconds of this thread."""
        self._template = template
        self._clock = clock
        self._inline: MessageTemplate | None = None
        self._first = start(template)
        self._small = _Lane(self._first)
        self._large = _Lane(start(template))

    @property
    def is_inline(self) -> bool:
        """Whether small chats are rendered in this process."""
        return self._inline is not None

    @property
    def has_date(self) -> bool:
        """Whether a chat's prompt may depend on the day."""
        return "strftime_now" in self._template.source

    async def load(self) -> None:
        """Compile the template; raises TemplateInvalid.

        Where no process can be had just now, the template is compiled with the first chat.
        """
        template = self._template
        if len(template.source) > MAX_SOURCE:
            raise TemplateInvalid(f"the chat template has more than {MAX_SOURCE} characters")
        try:
            answer = await self._first.load()
        except Late:
            raise TemplateInvalid(
                f"the chat template takes longer than {template.load_seconds:g} seconds to compile"
            ) from None
        except Lost as error:  # no fault of the template: the first chat tries again
            log.error("chat_template_process_lost", error=str(error))
            return
        if "reason" in answer:
            await self._first.close()
            raise TemplateInvalid(answer["text"])
        if answer["is_plain"]:
            self._inline = await asyncio.to_thread(
                MessageTemplate, template.source, template.bos_token, template.eos_token
            )

    async def render(self, messages: list[Message], tenant: str = "") -> str:
        """Return the prompt of a chat; those that wait are fair among tenants.

        Raises InvalidRequest for what the template refuses or takes too long for, RateLimited
        where too many wait, Unavailable where no process can be had.
        """
        texts = plain(messages)
        num_characters = sum(len(text["content"]) for text in texts)
        if self._inline is not None and (
            num_characters <= INLINE_CHARACTERS and len(texts) <= INLINE_MESSAGES
        ):
            with contextlib.suppress(OutputTooLong):
                return self._render_here(self._inline, texts)
        is_large = num_characters > LARGE_CHARACTERS or len(texts) > LARGE_MESSAGES
        lane = self._large if is_large else self._small
        return self._prompt_of(await self._answer(lane, texts, tenant))

    async def close(self) -> None:
        """End the processes; chats that still wait fail."""
        await asyncio.gather(self._small.close(), self._large.close())

    def _render_here(self, template: MessageTemplate, texts: list[dict[str, Any]]) -> str:
        began = self._clock()
        try:
            return template.render(texts, INLINE_OUTPUT)
        except OutputTooLong:
            raise
        except TemplateRefusal as error:
            raise template_refused(str(error)) from None
        except TemplateError:
            raise template_failed() from None
        finally:
            seconds = self._clock() - began
            if seconds > INLINE_SECONDS:
                self._inline = None
                log.warning("chat_template_slow", seconds=round(seconds, 3))

    async def _answer(self, lane: _Lane, texts: list[dict[str, Any]], tenant: str) -> Any:
        try:
            try:
                return await lane.render(texts, tenant)
            except Lost:  # it may have ended long ago: the kernel takes it first
                return await lane.render(texts, tenant)
        except Late:
            seconds = self._template.render_seconds
            log.warning("chat_template_late", seconds=seconds, messages=len(texts))
            raise template_failed(
                f"it takes longer than {seconds:g} seconds; send fewer or shorter messages"
            ) from None
        except Lost as error:
            log.error("chat_template_process_lost", error=str(error))
            raise Unavailable(
                "The chat could not be rendered; please try again.",
                code=ErrorCode.INTERNAL_ERROR,
                retry_after_seconds=1.0,
            ) from None

    def _prompt_of(self, answer: Any) -> str:
        if "prompt" in answer:
            return str(answer["prompt"])
        match answer["reason"]:
            case "refused":
                raise template_refused(answer["text"])
            case "too_long":
                most = self._template.max_characters
                raise template_failed(f"the prompt would have more than {most} characters")
            case "memory":
                raise template_failed("it takes too much memory; send fewer or shorter messages")
        raise template_failed()


class _Lane:
    """Chats that wait for one process, fair among tenants; one whose client leaves is not begun.

    One that has begun ends by itself, within its time: to start a process anew takes longer than
    most.
    """

    def __init__(self, process: RendererProcess) -> None:
        self._process = process
        self._turns = Turns(MAX_WAITING)
        self._running: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    async def render(self, texts: list[dict[str, Any]], tenant: str) -> Any:
        """Return the process's answer; raises RateLimited, Late and Lost."""
        try:
            await self._turns.take(tenant)
        except Full:
            raise RateLimited(
                "Too many chats wait to be rendered; please try again in a moment.",
                code=ErrorCode.QUEUE_FULL,
                retry_after_seconds=2.0,
            ) from None
        if self._is_closed:
            self._turns.give_back()
            raise Lost("the server ends")
        task = asyncio.create_task(self._process.render(texts))
        self._running.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `close`, and not its client's own task
                raise Lost("the server ends") from None
            raise

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._turns.give_back()
        if not task.cancelled():
            task.exception()  # whoever waited for it may have left

    async def close(self) -> None:
        """Kill the process, for good."""
        self._is_closed = True
        for task in self._running:
            task.cancel()
        await self._process.close()
