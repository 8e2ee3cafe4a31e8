"""The loaded model's chat template, which is loaded beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from chat_rendering.process import Template
from chat_rendering.renderer import Renderer, TemplateInvalid
from kserve_llamacpp.wire.frames import ModelFacts
from openai_protocol.errors import ErrorCode, InvalidRequest, Unavailable
from openai_protocol.requests import Message


class ModelTemplate:
    """Owns the renderer of the model that is loaded; owner: the model, on its event loop.

    A template that cannot be used is logged, and the model has no chats then: all else is served.
    """

    def __init__(
        self,
        model: str,
        source: str | None,
        make: Callable[[Template], Renderer] = Renderer,
        wait_seconds: float = 15.0,
    ) -> None:
        """`source` is used instead of the model's own; None: the model's.

        A chat waits `wait_seconds` for the template.
        """
        self._model = model
        self._source = source
        self._make = make
        self._wait_seconds = wait_seconds
        self._log = structlog.get_logger("model")
        self._template: Template | None = None
        self._loading: asyncio.Task[Renderer | None] | None = None
        self._renderer: Renderer | None = None
        self.num_rendering = 0
        self._became_idle = asyncio.Event()

    @property
    def has_date(self) -> bool:
        """Whether what it renders hangs on the time."""
        return self._template is not None and "strftime_now" in self._template.source

    def take(self, facts: ModelFacts) -> None:
        """Load a model's template, unless it is the one that there is."""
        source = self._source or facts.chat_template
        if source is None:
            self._log.warning("chat_template_missing", model=self._model)
            return
        template = Template(source, facts.bos_token, facts.eos_token)
        if template == self._template:
            return
        self._template = template
        before = self._loading
        self._loading = asyncio.create_task(self._load(template, before), name="chat-template")

    async def _load(
        self, template: Template, before: asyncio.Task[Renderer | None] | None
    ) -> Renderer | None:
        await self._end(before)
        renderer = self._renderer = self._make(template)
        try:
            await renderer.load()
        except TemplateInvalid as error:
            self._log.error("chat_template_invalid", model=self._model, error=str(error))
            return None
        return renderer

    async def render(self, messages: list[Message], tenant: str = "") -> str:
        """Return the prompt of a tenant's chat, once the template is loaded; raises ApiError."""
        self.num_rendering += 1
        try:
            renderer = await self._loaded()
            if renderer is None:
                raise InvalidRequest(
                    "This model has no chat template; use /v1/completions.",
                    param="messages",
                    code=ErrorCode.NO_CHAT_TEMPLATE,
                )
            return await renderer.render(messages, tenant)
        finally:
            self.num_rendering -= 1
            if not self.num_rendering:
                self._became_idle.set()

    async def idle(self) -> None:
        """Wait until no chat is rendered, or waits for it."""
        while self.num_rendering:
            self._became_idle.clear()
            await self._became_idle.wait()

    async def _loaded(self) -> Renderer | None:
        if self._loading is None:
            return None
        loading = self._loading
        done, _ = await asyncio.wait([loading], timeout=self._wait_seconds)
        if not done or loading.cancelled():
            raise Unavailable(
                "The model's chat template is still being compiled. Please try again later.",
                retry_after_seconds=5.0,
            )
        return loading.result()

    async def stop(self) -> None:
        """End the renderer's processes, also while it loads."""
        await self._end(self._loading)

    async def _end(self, loading: asyncio.Task[Renderer | None] | None) -> None:
        if loading is not None:
            loading.cancel()
            await asyncio.wait([loading])
        if self._renderer is not None:
            await self._renderer.close()
