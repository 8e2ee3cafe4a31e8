"""What a request asks of an upstream whose API is not OpenAI's: its model and its form."""

from __future__ import annotations

from typing import Any

from openai_protocol.errors import InvalidRequest, missing_parameter, wrong_type
from openai_protocol.requests import GenerationRequest
from openai_proxy.dialects.base import Call, Json, UpstreamRequest
from openai_proxy.dialects.fields import to_json
from openai_proxy.dialects.openai import OpenAIDialect

_OPENAI = OpenAIDialect()  # knows which headers pass
# They change how KServe and Triton read a body: what the client sent was another one.
_ABOUT_BODIES = ("ce-", "inference-header-")


def asked_of(call: Call) -> GenerationRequest:
    """Return the parsed request; translating dialects serve no endpoint that only passes."""
    assert call.asked is not None
    return call.asked


def posted(call: Call, path: str, body: Json) -> UpstreamRequest:
    """Return a request for an upstream, with the client's headers that are its business."""
    headers = [
        pair for pair in _OPENAI.request(call).headers if not pair[0].startswith(_ABOUT_BODIES)
    ]
    return UpstreamRequest(path, headers, to_json(body))


def model_of(call: Call) -> str:
    """Return the model's name for an upstream that does not do without."""
    if call.upstream_model is None:
        raise missing_parameter("model")
    return call.upstream_model


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
        raise missing_parameter("response_format.json_schema.schema")
    return schema


def pattern_of(values: Json, name: str) -> str:
    """Return a parameter beyond OpenAI's that must be text; raises InvalidRequest."""
    value = values[name]
    if not isinstance(value, str):
        raise wrong_type(name, "a valid string")
    return value
