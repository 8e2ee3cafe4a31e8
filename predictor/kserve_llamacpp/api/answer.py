"""From running generations to an answer: in one piece, or as a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Protocol
from uuid import uuid4

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from kserve_llamacpp.engine.generation import Delta, Generation
from kserve_llamacpp.served_model import ServedModel
from openai_protocol import responses, sse
from openai_protocol.errors import ApiError
from openai_protocol.requests import GenerationRequest
from openai_protocol.responses import Json


class Shape(Protocol):
    """How one endpoint writes its answer."""

    head: Json
    object_name: str

    def opening(self) -> Json | None:
        """Return the chunk that opens a stream, if there is one."""
        ...

    def chunk(self, index: int, text: str) -> Json:
        """Return a chunk with text."""
        ...

    def ending(self, index: int, finish_reason: str) -> Json:
        """Return the chunk with the reason of a choice's end."""
        ...

    def whole(self, texts: list[str], finish_reasons: list[str], usage: Json) -> Json:
        """Return the answer in one piece."""
        ...


class ChatShape:
    """A chat completion: one choice, opened by its role."""

    object_name = "chat.completion.chunk"

    def __init__(self, model: str, fingerprint: str) -> None:
        self.head = _head("chatcmpl", model, fingerprint)

    def opening(self) -> Json | None:
        """Return the chunk that names the role."""
        return responses.chat_chunk(self.head, {"role": "assistant", "content": ""})

    def chunk(self, index: int, text: str) -> Json:
        """Return a chunk with text."""
        return responses.chat_chunk(self.head, {"content": text})

    def ending(self, index: int, finish_reason: str) -> Json:
        """Return the chunk with the reason of the end."""
        return responses.chat_chunk(self.head, {}, finish_reason)

    def whole(self, texts: list[str], finish_reasons: list[str], usage: Json) -> Json:
        """Return the answer in one piece."""
        return responses.chat_completion(self.head, texts[0], finish_reasons[0], usage)


class TextShape:
    """A text completion: one choice for each prompt."""

    object_name = "text_completion"

    def __init__(self, model: str, fingerprint: str) -> None:
        self.head = _head("cmpl", model, fingerprint)

    def opening(self) -> Json | None:
        """Return nothing: a text has no opening."""
        return None

    def chunk(self, index: int, text: str) -> Json:
        """Return a chunk with text."""
        return responses.text_chunk(self.head, index, text)

    def ending(self, index: int, finish_reason: str) -> Json:
        """Return the chunk with the reason of a choice's end."""
        return responses.text_chunk(self.head, index, "", finish_reason)

    def whole(self, texts: list[str], finish_reasons: list[str], usage: Json) -> Json:
        """Return the answer in one piece."""
        choices = [
            responses.text_choice(index, text, reason)
            for index, (text, reason) in enumerate(zip(texts, finish_reasons, strict=True))
        ]
        return responses.text_completion(self.head, choices, usage)


class Answer:
    """One request's answer; owner: its route. Whatever happens, its generations end with it."""

    def __init__(
        self,
        scope: Scope,
        model: ServedModel,
        body: GenerationRequest,
        generations: list[Generation],
        shape: Shape,
    ) -> None:
        self._scope = scope
        self._model = model
        self._body = body
        self._generations = generations
        self._shape = shape
        scope["access_log"].update(model=model.name, stream=bool(body.stream))

    async def response(self) -> Response:
        """Return the answer; raises ApiError for what fails before the first event."""
        try:
            for generation in self._generations:
                await generation.started()
            if self._body.stream:
                return EventStream(self._events(), self.close)
            return await self._whole()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel what still runs, and tell the access log."""
        self._model.cancel(self._generations)
        self._scope["access_log"].update(
            prompt_tokens=sum(g.prompt_tokens or 0 for g in self._generations),
            completion_tokens=sum(len(g.tokens) for g in self._generations),
        )

    async def _whole(self) -> Response:
        results = await asyncio.gather(*(collect(g) for g in self._generations))
        texts = [text for text, _ in results]
        reasons = [reason for _, reason in results]
        self.close()
        body = self._shape.whole(texts, reasons, self._usage())
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def _events(self) -> AsyncIterator[bytes]:
        """Yield whole events, several at once when they came together."""
        opening = self._shape.opening()
        if opening is not None:
            yield _event(opening)
        try:
            async for index, delta in _merge(self._generations):
                events = b""
                if delta.text:
                    events += _event(self._shape.chunk(index, delta.text))
                if delta.finish_reason is not None:
                    events += _event(self._shape.ending(index, delta.finish_reason))
                if events:
                    yield events
        except ApiError as error:
            yield sse.event(error.body())
            return
        if self._body.include_usage:
            shape = self._shape
            yield _event(responses.usage_chunk(shape.head, shape.object_name, self._usage()))
        yield sse.DONE

    def _usage(self) -> Json:
        prompt_tokens = sum(g.prompt_tokens or 0 for g in self._generations)
        return responses.usage(prompt_tokens, sum(len(g.tokens) for g in self._generations))


class EventStream(Response):
    """Sends events as they come; calls `close` at the end, also when it is cancelled."""

    media_type = sse.MEDIA_TYPE

    def __init__(self, events: AsyncIterator[bytes], close: Closer) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for events in self._events:
                await send({"type": "http.response.body", "body": events, "more_body": True})
            self._close()  # before the last message, which ends the request for its client
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()


class Closer(Protocol):
    """Frees what a stream holds; may be called twice."""

    def __call__(self) -> None: ...


def _head(prefix: str, model: str, fingerprint: str) -> Json:
    return responses.completion_head(
        f"{prefix}-{uuid4().hex}", int(time.time()), model, fingerprint
    )


def _event(chunk: Json) -> bytes:
    return sse.event(msgspec.json.encode(chunk))


async def collect(generation: Generation) -> tuple[str, str]:
    """Return a generation's whole text and its finish reason; raises ApiError."""
    texts = []
    reason = ""
    async for delta in generation.deltas():
        texts.append(delta.text)
        reason = delta.finish_reason or ""
    return "".join(texts), reason


async def _merge(generations: list[Generation]) -> AsyncIterator[tuple[int, Delta]]:
    """Yield the deltas of all generations as they come, each with its index."""
    if len(generations) == 1:
        async for delta in generations[0].deltas():
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta] | None] = asyncio.Queue(maxsize=len(generations))

    async def pump(index: int) -> None:
        try:
            async for delta in generations[index].deltas():
                await queue.put((index, delta))
        except ApiError:
            await queue.put(None)  # who reads asks this task for its result then
            raise
        await queue.put(None)

    pumps = [asyncio.create_task(pump(index)) for index in range(len(generations))]
    try:
        for _ in range(len(pumps)):
            while (item := await queue.get()) is not None:
                yield item
        for task in pumps:
            task.result()
    finally:
        for task in pumps:
            task.cancel()
