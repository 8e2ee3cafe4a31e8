"""From running generations to an answer: in one piece, or as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from kserve_llamacpp.api.shapes import Shape
from kserve_llamacpp.engine_client.generation import Delta, Generation
from kserve_llamacpp.resume import Resumable
from kserve_llamacpp.served_model import ServedModel
from kserve_llamacpp.wire.frames import Logprobs
from openai_protocol import responses, sse
from openai_protocol.errors import ApiError
from openai_protocol.requests import GenerationRequest
from openai_protocol.responses import Json


@dataclass(frozen=True)
class Collected:
    """All that a generation gave."""

    text: str
    finish_reason: str
    logprobs: list[Logprobs]


class Answer:
    """One request's answer; owner: its route. Whatever happens, its generations end with it.

    The generations are the choices of the first prompt, then those of the next.
    """

    def __init__(
        self,
        scope: Scope,
        model: ServedModel,
        body: GenerationRequest,
        generations: list[Generation],
        shape: Shape,
        resumable: Resumable | None = None,
    ) -> None:
        """`resumable` says whether another can go on with the stream, and what was sent before."""
        self._scope = scope
        self._model = model
        self._body = body
        self._generations = generations
        self._shape = shape
        self._resumable = resumable or Resumable()
        choices = body.num_generated_choices
        self._prompts = [
            generations[at : at + choices] for at in range(0, len(generations), choices)
        ]
        scope["access_log"].update(model=model.name, stream=bool(body.stream))

    async def response(self) -> Response:
        """Return the answer; raises ApiError for what fails before the first event."""
        try:
            for choices in self._prompts:  # what holds for one choice holds for the others
                await choices[0].started()
            firsts = [choices[0] for choices in self._prompts]
            self._resumable.begin(self._shape.head, firsts)
            if self._body.stream:
                return EventStream(self._events(), self.close)
            return await self._whole()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel what still runs, and tell the access log."""
        self._model.cancel(self._generations)
        usage = self._usage()
        self._scope["access_log"].update(
            prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"]
        )

    async def _whole(self) -> Response:
        of = dict(zip(self._generations, await self._collected(), strict=True))
        count = self._body.num_choices
        results = [of[best] for choices in self._prompts for best in _best(choices, count)]
        self.close()
        choices = [
            self._shape.choice(index, result.text, result.finish_reason, result.logprobs)
            for index, result in enumerate(results)
        ]
        body = self._shape.whole(choices, self._usage())
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def _collected(self) -> list[Collected]:
        if len(self._generations) == 1:
            return [await collect(self._generations[0])]
        tasks = [asyncio.create_task(collect(g)) for g in self._generations]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # when one has failed, the others would wait for ever
                task.cancel()

    async def _events(self) -> AsyncIterator[bytes]:
        """Yield whole events, several at once when they came together."""
        if opening := b"".join(self._opening(index) for index in range(len(self._generations))):
            yield opening
        try:
            async for index, delta in _merge(self._generations):
                if events := self._of_delta(index, delta):
                    yield events
        except ApiError as error:
            yield sse.event(error.body())
            return
        if usage := self._of_usage():
            yield usage
        yield sse.DONE

    def _opening(self, index: int) -> bytes:
        chunk = self._shape.opening(index)
        if chunk is None or self._resumable.has_begun(index):
            return b""
        return self._resumable.comment(index) + _event(chunk)

    def _of_delta(self, index: int, delta: Delta) -> bytes:
        """Return the events of a delta: its text, if there is any, and the end."""
        resumable, shape = self._resumable, self._shape
        reason = delta.finish_reason
        resumable.note(index, delta)
        events = b""
        if delta.text or delta.logprobs:
            before = self._generations[index].shown_text
            chunk = shape.chunk(index, delta.text, delta.logprobs, before)
            events += resumable.comment(index, reason) + _event(chunk)
        if reason is not None and not resumable.has_ended(index):
            ending = _event(shape.ending(index, reason))
            events += resumable.comment(index, reason, ended=True) + ending
        return events

    def _of_usage(self) -> bytes:
        if not self._body.include_usage or self._resumable.has_usage:
            return b""
        shape = self._shape
        chunk = responses.usage_chunk(shape.head, shape.object_name, self._usage())
        return self._resumable.usage_comment() + _event(chunk)

    def _usage(self) -> Json:
        """Count each prompt once, and all that was generated."""
        return responses.usage(
            prompt_tokens=sum(choices[0].prompt_tokens or 0 for choices in self._prompts),
            completion_tokens=sum(len(g.tokens) for g in self._generations),
            cached_tokens=sum(min(g.cached_tokens for g in choices) for choices in self._prompts),
        )


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


def _event(chunk: Json) -> bytes:
    return sse.event(msgspec.json.encode(chunk))


async def collect(generation: Generation) -> Collected:
    """Return all that a generation gives, at its end; raises ApiError."""
    texts = []
    logprobs = []
    reason = ""
    async for delta in generation.deltas():
        texts.append(delta.text)
        logprobs += delta.logprobs
        reason = delta.finish_reason or ""
    return Collected("".join(texts), reason, logprobs)


def _best(choices: list[Generation], count: int) -> list[Generation]:
    """Return the choices whose tokens the model finds the likeliest, where not all are wanted."""
    if count == len(choices):
        return choices
    return sorted(choices, key=lambda choice: -choice.mean_logprob)[:count]


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
