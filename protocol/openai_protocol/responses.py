"""What the completion endpoints answer: whole bodies and chunks, ready for a JSON encoder."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Return the `usage` object, in tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_completion(head: Json, text: str, finish_reason: str, usage: Json) -> Json:
    """Return a whole chat completion with one choice; `head` comes from `completion_head`."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}


def chat_chunk(head: Json, delta: Json, finish_reason: str | None = None) -> Json:
    """Return one chunk of a chat stream."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def text_completion(head: Json, choices: list[Json], usage: Json) -> Json:
    """Return a whole text completion; its choices come from `text_choice`."""
    return {**head, "object": "text_completion", "choices": choices, "usage": usage}


def text_chunk(head: Json, index: int, text: str, finish_reason: str | None = None) -> Json:
    """Return one chunk of a text stream."""
    return {
        **head,
        "object": "text_completion",
        "choices": [text_choice(index, text, finish_reason)],
    }


def text_choice(index: int, text: str, finish_reason: str | None) -> Json:
    """Return one choice of a text completion."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


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
