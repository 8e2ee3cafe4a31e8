"""What a request asks of an upstream whose API is not OpenAI's: its model, prompt and form."""

from __future__ import annotations

from typing import Any

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
)
from openai_proxy.dialects.base import Call, Headers, Json, Render
from openai_proxy.dialects.openai import OpenAIDialect

_OPENAI = OpenAIDialect()


def asked_of(call: Call) -> GenerationRequest:
    """Return the parsed request; translating dialects serve no endpoint that only passes."""
    assert call.asked is not None
    return call.asked


def passed_headers(call: Call) -> Headers:
    """Return the client's headers that are the upstream's business, and the content type."""
    return _OPENAI.request(call).headers


def model_of(call: Call) -> str:
    """Return the model's name for an upstream that does not do without."""
    if call.upstream_model is None:
        raise InvalidRequest(
            "Missing required parameter: 'model'.",
            param="model",
            code=ErrorCode.MISSING_REQUIRED_PARAMETER,
        )
    return call.upstream_model


def prompt_of(call: Call, render: Render | None) -> str:
    """Return the text that is to be completed, for an upstream that takes one.

    Raises InvalidRequest for several prompts, token ids, no text, and a chat that nothing renders.
    """
    prompts = prompts_of(call, render)
    if len(prompts) > 1:
        raise _unsupported("This model takes one prompt in a request.")
    prompt = prompts[0]
    if not isinstance(prompt, str):
        raise _unsupported("This model takes its prompt as text, not as token ids.")
    if not prompt:
        raise InvalidRequest(
            "'prompt' is empty: send at least one character.",
            param="prompt",
            code=ErrorCode.EMPTY_PROMPT,
        )
    return prompt


def prompts_of(call: Call, render: Render | None) -> list[str | list[int]]:
    """Return the prompts, each as text or as token ids; raises InvalidRequest as `render` does."""
    asked = call.asked
    if isinstance(asked, CompletionRequest):
        return asked.prompts()
    assert isinstance(asked, ChatCompletionRequest)
    if render is None:
        raise InvalidRequest(
            "This model's server only completes text, and no chat template is configured for it: "
            "set `chat_template` of its upstream, or use /v1/completions.",
            param="messages",
            code=ErrorCode.NO_CHAT_TEMPLATE,
        )
    return [render(asked.messages)]


def schema_of(response_format: Any) -> Json | None:
    """Return the JSON schema that an answer must follow: `{}` for any JSON, None for free text.

    Takes `response_format`; raises InvalidRequest.
    """
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {}
    if kind != "json_schema":
        raise InvalidRequest(
            "Invalid 'response_format': its type must be text, json_object or json_schema.",
            param="response_format",
        )
    found = response_format.get("json_schema")
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema.schema'.",
            param="response_format.json_schema.schema",
            code=ErrorCode.MISSING_REQUIRED_PARAMETER,
        )
    return schema


def pattern_of(values: Json, name: str) -> str:
    """Return a parameter beyond OpenAI's that must be text; raises InvalidRequest."""
    value = values[name]
    if not isinstance(value, str):
        raise InvalidRequest(
            f"Invalid '{name}': input should be a valid string.",
            param=name,
            code=ErrorCode.INVALID_TYPE,
        )
    return value


def whole_number(name: str, value: int | str, least: int = 1) -> int:
    """Return a dialect's option that counts something; raises ValueError."""
    text = str(value).strip()
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"its option {name} must be a whole number of at least {least}")
    return int(text)


def _unsupported(text: str) -> InvalidRequest:
    return InvalidRequest(text, param="prompt", code=ErrorCode.UNSUPPORTED_VALUE)
