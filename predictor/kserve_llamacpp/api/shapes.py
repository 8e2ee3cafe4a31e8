"""How each endpoint writes its answer: choices and chunks from texts and logprobs."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Protocol
from uuid import uuid4

from kserve_llamacpp.wire.frames import Logprobs
from openai_protocol import responses
from openai_protocol.responses import Json, TextOffsets


class Shape(Protocol):
    """How one endpoint writes its answer; owner: the answer, since it may remember its texts."""

    head: Json
    object_name: str

    def opening(self, index: int) -> Json | None:
        """Return the chunk that opens a choice's stream, if there is one."""
        ...

    def chunk(self, index: int, text: str, logprobs: list[Logprobs], before: bytes = b"") -> Json:
        """Return a chunk with text; `before` are the bytes of tokens that another server sent."""
        ...

    def ending(self, index: int, finish_reason: str) -> Json:
        """Return the chunk with the reason of a choice's end."""
        ...

    def choice(self, index: int, text: str, finish_reason: str, logprobs: list[Logprobs]) -> Json:
        """Return a whole choice."""
        ...

    def whole(self, choices: list[Json], usage: Json) -> Json:
        """Return the answer in one piece."""
        ...


class ChatShape:
    """A chat completion: each choice is opened by its role."""

    object_name = "chat.completion.chunk"

    def __init__(self, model: str, fingerprint: str, num_top_logprobs: int | None = None) -> None:
        """`num_top_logprobs` is None where no logprobs were asked for."""
        self.head = _head("chatcmpl", model, fingerprint)
        self._has_logprobs = num_top_logprobs is not None

    def opening(self, index: int) -> Json | None:
        """Return the chunk that names the role."""
        return responses.chat_chunk(self.head, index, {"role": "assistant", "content": ""})

    def chunk(self, index: int, text: str, logprobs: list[Logprobs], before: bytes = b"") -> Json:
        """Return a chunk with text."""
        return responses.chat_chunk(
            self.head, index, {"content": text}, logprobs=self._logprobs(logprobs)
        )

    def ending(self, index: int, finish_reason: str) -> Json:
        """Return the chunk with the reason of the end."""
        return responses.chat_chunk(self.head, index, {}, finish_reason)

    def choice(self, index: int, text: str, finish_reason: str, logprobs: list[Logprobs]) -> Json:
        """Return a whole choice."""
        return responses.chat_choice(index, text, finish_reason, self._logprobs(logprobs))

    def whole(self, choices: list[Json], usage: Json) -> Json:
        """Return the answer in one piece."""
        return responses.chat_completion(self.head, choices, usage)

    def _logprobs(self, logprobs: list[Logprobs]) -> Json | None:
        return responses.chat_logprobs(logprobs) if self._has_logprobs else None


class TextShape:
    """A text completion: the choices of each prompt, which may be repeated before them."""

    object_name = "text_completion"

    def __init__(
        self,
        model: str,
        fingerprint: str,
        num_top_logprobs: int | None = None,
        echoes: list[str] | None = None,
    ) -> None:
        """`echoes` has a prompt's text for each choice, where it is to come before."""
        self.head = _head("cmpl", model, fingerprint)
        self._num_top_logprobs = num_top_logprobs
        self._echoes = echoes
        self._offsets: defaultdict[int, TextOffsets] = defaultdict(TextOffsets)

    def opening(self, index: int) -> Json | None:
        """Return the chunk with the prompt, where it is to be repeated."""
        return responses.text_chunk(self.head, index, self._echo(index)) if self._echoes else None

    def chunk(self, index: int, text: str, logprobs: list[Logprobs], before: bytes = b"") -> Json:
        """Return a chunk with text."""
        if before and index not in self._offsets:
            self._offsets[index].next(before)
        return responses.text_chunk(
            self.head, index, text, logprobs=self._logprobs(index, logprobs)
        )

    def ending(self, index: int, finish_reason: str) -> Json:
        """Return the chunk with the reason of a choice's end."""
        return responses.text_chunk(self.head, index, "", finish_reason)

    def choice(self, index: int, text: str, finish_reason: str, logprobs: list[Logprobs]) -> Json:
        """Return a whole choice."""
        text = self._echo(index) + text
        return responses.text_choice(index, text, finish_reason, self._logprobs(index, logprobs))

    def whole(self, choices: list[Json], usage: Json) -> Json:
        """Return the answer in one piece."""
        return responses.text_completion(self.head, choices, usage)

    def _echo(self, index: int) -> str:
        return self._echoes[index] if self._echoes else ""

    def _logprobs(self, index: int, logprobs: list[Logprobs]) -> Json | None:
        if self._num_top_logprobs is None:
            return None
        offsets = [self._offsets[index].next(entry.drawn.text) for entry in logprobs]
        return responses.text_logprobs(logprobs, offsets, self._num_top_logprobs)


def _head(prefix: str, model: str, fingerprint: str) -> Json:
    return responses.completion_head(
        f"{prefix}-{uuid4().hex}", int(time.time()), model, fingerprint
    )
