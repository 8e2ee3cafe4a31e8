"""OpenAI's answers and streams, made from what a translating dialect has read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from openai_protocol import responses
from openai_protocol.requests import ChatCompletionRequest
from openai_protocol.responses import TextOffsets
from openai_protocol.responses import usage as usage_of
from openai_protocol.sse import DONE, event
from openai_proxy.dialects.base import CHAT, Call, Json
from openai_proxy.dialects.fields import to_json
from openai_proxy.dialects.logprobs import Draw

__all__ = ["Choice", "ChunkWriter", "completion", "usage_of"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of a whole answer; `message` adds to a chat's message (`tool_calls`).

    `draws` are its text's tokens, where they were asked for and the upstream tells them.
    """

    text: str
    finish_reason: str = "stop"
    message: Json | None = None
    draws: Sequence[Draw] = ()


class Logprobs:
    """Writes what is known of a choice's tokens in OpenAI's form; owner: an answer or a stream."""

    def __init__(self, call: Call) -> None:
        asked = call.asked
        self._is_chat = isinstance(asked, ChatCompletionRequest)
        self._num_top = (asked.num_top_logprobs or 0) if asked is not None else 0
        self._offsets: defaultdict[int, TextOffsets] = defaultdict(TextOffsets)

    def of(self, draws: Sequence[Draw], index: int) -> Json | None:
        """Return the `logprobs` of a choice's next tokens; None where there are none."""
        if not draws:
            return None
        if self._is_chat:
            return responses.chat_logprobs(draws)
        offsets = [self._offsets[index].next(draw.drawn.text) for draw in draws]
        return responses.text_logprobs(draws, offsets, self._num_top)


def completion(call: Call, choices: Sequence[Choice], usage: Json | None) -> bytes:
    """Return a whole answer; `usage` is None where the upstream tells none, and left out then."""
    head = _head(call)
    logprobs = Logprobs(call)
    listed = [
        _choice(call, index, choice, logprobs.of(choice.draws, index))
        for index, choice in enumerate(choices)
    ]
    name = "chat.completion" if call.path == CHAT else "text_completion"
    body: Json = {**head, "object": name, "choices": listed}
    if usage is not None:
        body["usage"] = usage
    return to_json(body)


class ChunkWriter:
    """Writes the events of one stream; owner: its parser."""

    def __init__(self, call: Call) -> None:
        self._head = _head(call)
        self._is_chat = call.path == CHAT
        asked = call.asked
        self._wants_usage = asked is not None and asked.include_usage
        self._logprobs = Logprobs(call)
        self._begun: set[int] = set()

    def text(self, text: str, index: int = 0, draws: Sequence[Draw] = ()) -> bytes:
        """Return an event with a piece of a choice's text, and tokens; none for neither."""
        return self.delta({"content": text}, index, draws) if text or draws else b""

    def delta(self, delta: Json, index: int = 0, draws: Sequence[Draw] = ()) -> bytes:
        """Return an event that adds to a choice: a message's fields, or `content` as text."""
        logprobs = self._logprobs.of(draws, index)
        if not self._is_chat:
            text = delta.get("content") or ""
            return self._event(responses.text_chunk(self._head, index, text, logprobs=logprobs))
        chunk = responses.chat_chunk(self._head, index, delta, logprobs=logprobs)
        return self._role(index) + self._event(chunk)

    def finish(self, reason: str, index: int = 0) -> bytes:
        """Return the event that ends a choice."""
        if not self._is_chat:
            return self._event(responses.text_chunk(self._head, index, "", reason))
        last = responses.chat_chunk(self._head, index, {}, reason)
        return self._role(index) + self._event(last)

    def end(self, usage: Json | None = None) -> bytes:
        """Return what ends the stream: the usage, where it was asked for and is known."""
        name = "chat.completion.chunk" if self._is_chat else "text_completion"
        last = b""
        if self._wants_usage and usage is not None:
            last = self._event(responses.usage_chunk(self._head, name, usage))
        return last + DONE

    def _role(self, index: int) -> bytes:
        if index in self._begun:
            return b""
        self._begun.add(index)
        delta = {"role": "assistant", "content": ""}
        return self._event(responses.chat_chunk(self._head, index, delta))

    def _event(self, value: Json) -> bytes:
        return event(to_json(value))


def _head(call: Call) -> Json:
    return {"id": call.answer_id, "created": call.created, "model": call.model or ""}


def _choice(call: Call, index: int, choice: Choice, logprobs: Json | None) -> Json:
    if not isinstance(call.asked, ChatCompletionRequest):
        return responses.text_choice(index, choice.text, choice.finish_reason, logprobs)
    made = responses.chat_choice(index, choice.text, choice.finish_reason, logprobs)
    made["message"] |= choice.message or {}
    return made
