"""What the completion endpoints answer: whole bodies and chunks, ready for a JSON encoder."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

Json = dict[str, Any]


class ScoredToken(Protocol):
    """A token's bytes and the natural logarithm of its probability.

    Its text is a string where a server tells only that, and the bytes cannot be known.
    """

    @property
    def text(self) -> bytes | str: ...
    @property
    def logprob(self) -> float: ...


class Draw(Protocol):
    """A token that was drawn, and the likeliest at its place, best first."""

    @property
    def drawn(self) -> ScoredToken: ...
    @property
    def top(self) -> Sequence[ScoredToken]: ...


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Json:
    """Return the `usage` object, in tokens; `cached_tokens` of the prompt's were not computed."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def chat_completion(head: Json, choices: list[Json], usage: Json) -> Json:
    """Return a whole chat completion; its choices come from `chat_choice`."""
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage}


def chat_choice(index: int, text: str, finish_reason: str, logprobs: Json | None = None) -> Json:
    """Return one choice of a chat completion; `logprobs` come from `chat_logprobs`."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }


def chat_chunk(
    head: Json,
    index: int,
    delta: Json,
    finish_reason: str | None = None,
    logprobs: Json | None = None,
) -> Json:
    """Return one chunk of a chat stream."""
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def text_completion(head: Json, choices: list[Json], usage: Json) -> Json:
    """Return a whole text completion; its choices come from `text_choice`."""
    return {**head, "object": "text_completion", "choices": choices, "usage": usage}


def text_chunk(
    head: Json,
    index: int,
    text: str,
    finish_reason: str | None = None,
    logprobs: Json | None = None,
) -> Json:
    """Return one chunk of a text stream."""
    choice = text_choice(index, text, finish_reason, logprobs)
    return {**head, "object": "text_completion", "choices": [choice]}


def text_choice(
    index: int, text: str, finish_reason: str | None, logprobs: Json | None = None
) -> Json:
    """Return one choice of a text completion; `logprobs` come from `text_logprobs`."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_logprobs(draws: Sequence[Draw]) -> Json:
    """Return the `logprobs` of a chat's choice: one entry for each token of its text."""
    content = [
        {**_scored(draw.drawn), "top_logprobs": [_scored(token) for token in draw.top]}
        for draw in draws
    ]
    return {"content": content, "refusal": None}


def text_logprobs(draws: Sequence[Draw], offsets: list[int], num_top: int) -> Json:
    """Return the `logprobs` of a text's choice; `offsets` say where in it each token begins.

    The alternatives are an object by the tokens' texts, which also holds the drawn one.
    """
    tops = [
        {token_text(token.text, "bytes:"): token.logprob for token in (*draw.top, draw.drawn)}
        for draw in draws
    ]
    return {
        "tokens": [token_text(draw.drawn.text, "bytes:") for draw in draws],
        "token_logprobs": [draw.drawn.logprob for draw in draws],
        "top_logprobs": tops if num_top > 0 else None,
        "text_offset": offsets,
    }


class TextOffsets:
    """Where in a choice's text each token begins, in characters; a shared one counts for each."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def next(self, text: bytes | str) -> int:
        """Return where a token with this text begins."""
        offset = self._length
        self._length += len(text if isinstance(text, str) else self._decoder.decode(text))
        return offset


def token_text(data: bytes | str, prefix: str = "") -> str:
    """Return a token's text; one that is a part of a character has its bytes written out.

    `prefix` stands before such bytes: OpenAI writes `bytes:` there in text completions.
    """
    if isinstance(data, str):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


def _scored(token: ScoredToken) -> Json:
    return {
        "token": token_text(token.text),
        "logprob": token.logprob,
        "bytes": None if isinstance(token.text, str) else list(token.text),
    }


def usage_chunk(head: Json, object_name: str, usage: Json) -> Json:
    """Return the last chunk of a stream that was asked for its usage: no choices, only figures."""
    return {**head, "object": object_name, "choices": [], "usage": usage}


def completion_head(completion_id: str, created: int, model: str, fingerprint: str) -> Json:
    """Return the fields that all chunks of one answer share; `created` in Unix seconds."""
    return {
        "id": completion_id,
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
    }


def model_object(model: str, created: int, owned_by: str) -> Json:
    """Return OpenAI's model object; `created` in Unix seconds."""
    return {"id": model, "object": "model", "created": created, "owned_by": owned_by}


def model_list(models: list[Json]) -> Json:
    """Return OpenAI's list of model objects."""
    return {"object": "list", "data": models}
