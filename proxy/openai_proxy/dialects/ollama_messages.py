"""OpenAI's messages, tools and tool calls as Ollama has them, and its own as OpenAI has them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from openai_protocol.errors import ErrorCode, InvalidRequest, missing_parameter, wrong_type
from openai_protocol.plain_messages import role_of, text_of
from openai_protocol.requests import ContentPart, Message
from openai_proxy.dialects.base import Json
from openai_proxy.dialects.fields import json_value, object_in, text_in, to_json


def ollama_messages(messages: Sequence[Message]) -> list[Json]:
    """Translate a conversation; raises InvalidRequest that names the part at fault."""
    names: dict[str, str] = {}  # of the functions, by their calls' ids
    return [_translated(message, at, names) for at, message in enumerate(messages)]


def _translated(message: Message, at: int, names: dict[str, str]) -> Json:
    more = message.model_extra or {}
    text, images = _content(message, at)
    made: Json = {"role": role_of(message), "content": text}
    if images:
        made["images"] = images
    thinking = more.get("reasoning_content") or more.get("reasoning")
    if isinstance(thinking, str):
        made["thinking"] = thinking
    if more.get("tool_calls"):
        made["tool_calls"] = _calls(more["tool_calls"], f"messages[{at}].tool_calls", names)
    if message.role in ("tool", "function"):
        call_id = more.get("tool_call_id")
        made["role"] = "tool"
        made["tool_name"] = message.name or names.get(str(call_id), "")
        if isinstance(call_id, str):
            made["tool_call_id"] = call_id
    return made


def _content(message: Message, at: int) -> tuple[str, list[str]]:
    """Return a message's text, and its images in base64."""
    if message.content is None or isinstance(message.content, str):
        return message.content or "", []
    texts, images = [], []
    for part_at, part in enumerate(message.content):
        where = f"messages[{at}].content[{part_at}]"
        if part.type == "image_url":
            images.append(_image(part, f"{where}.image_url"))
        else:
            texts.append(text_of(part, where))
    return "".join(texts), images


def _image(part: ContentPart, where: str) -> str:
    found = (part.model_extra or {}).get("image_url")
    url = found.get("url") if isinstance(found, dict) else found
    if not isinstance(url, str):
        raise missing_parameter(f"{where}.url")
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise InvalidRequest(
            "This model takes images as data: URLs in base64 alone: it fetches none.",
            param=f"{where}.url",
            code=ErrorCode.UNSUPPORTED_VALUE,
        )
    try:
        base64.b64decode(data, validate=True)
    except ValueError:  # characters of another alphabet, or too few of them
        raise InvalidRequest(
            f"Invalid '{where}.url': its data is not base64.", param=f"{where}.url"
        ) from None
    return data


def _calls(value: Any, where: str, names: dict[str, str]) -> list[Json]:
    if not isinstance(value, list):
        raise wrong_type(where, "a list")
    return [_call(call, f"{where}[{n}]", names) for n, call in enumerate(value)]


def _call(call: Any, where: str, names: dict[str, str]) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise missing_parameter(f"{where}.function.name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json_value(arguments.encode()) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise InvalidRequest(
            f"Invalid '{where}.function.arguments': it must be a JSON object.",
            param=f"{where}.function.arguments",
        )
    made: Json = {"function": {"name": function["name"], "arguments": arguments}}
    if isinstance(call.get("id"), str):
        names[call["id"]] = function["name"]
        made["id"] = call["id"]
    return made


def ollama_tools(value: Any) -> list[Json]:
    """Check `tools`, which Ollama takes as they are; raises InvalidRequest."""
    if not isinstance(value, list):
        raise wrong_type("tools", "a list")
    for n, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise missing_parameter(f"tools[{n}].function.name")
    return value


def openai_calls(value: Any, first: int, answer_id: str) -> list[Json]:
    """Translate an answer's tool calls; `first` is the index of the first of them.

    Ollama's arguments are an object, OpenAI's its text. Where a call has no id, it gets one.
    """
    calls = [call for call in value if isinstance(call, dict)] if isinstance(value, list) else []
    return [_openai_call(call, first + n, answer_id) for n, call in enumerate(calls)]


def _openai_call(call: Json, index: int, answer_id: str) -> Json:
    function = object_in(call, "function")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = to_json(arguments or {}).decode()
    return {
        "index": index,
        "id": text_in(call, "id") or f"call_{answer_id.rpartition('-')[2]}_{index}",
        "type": "function",
        "function": {"name": text_in(function, "name"), "arguments": arguments},
    }
