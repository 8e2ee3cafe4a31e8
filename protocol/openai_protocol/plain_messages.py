"""A chat's messages as a role and a text each, for who takes nothing else."""

from __future__ import annotations

from typing import Any

from openai_protocol.errors import ErrorCode, InvalidRequest, missing_parameter
from openai_protocol.requests import ContentPart, Message


def plain(messages: list[Message]) -> list[dict[str, Any]]:
    """Return the messages with text alone, "" where there is none; raises InvalidRequest."""
    return [_plain(message, at) for at, message in enumerate(messages)]


def _plain(message: Message, at: int) -> dict[str, Any]:
    if message.role in ("tool", "function") or (message.model_extra or {}).get("tool_calls"):
        raise InvalidRequest(
            "Tool calls are not supported with this model.",
            param=f"messages[{at}]",
            code=ErrorCode.UNSUPPORTED_VALUE,
        )
    parts = message.content
    if parts is None or isinstance(parts, str):
        return {"role": role_of(message), "content": parts or ""}
    texts = [text_of(part, f"messages[{at}].content[{n}]") for n, part in enumerate(parts)]
    return {"role": role_of(message), "content": "".join(texts)}


def role_of(message: Message) -> str:
    """Return a message's role by its older name."""
    return "system" if message.role == "developer" else message.role


def text_of(part: ContentPart, where: str) -> str:
    """Return the text of a part of a message; raises InvalidRequest where it is something else."""
    if part.type != "text":
        raise InvalidRequest(
            f"Content of type '{part.type[:64]}' is not supported with this model.",
            param=f"{where}.type",
            code=ErrorCode.UNSUPPORTED_VALUE,
        )
    if part.text is None:
        raise missing_parameter(f"{where}.text")
    return part.text
