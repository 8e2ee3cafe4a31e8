"""JSON Schemas of what the proxy answers, by name; requests' are those of their models."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
OBJECT: Json = {"type": "object"}


def listed(items: Json) -> Json:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def made_of(properties: Json, *optional: str) -> Json:
    """Return the schema of an object that has all of these properties but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def named(name: str) -> Json:
    """Return a reference to one of the schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(kind: str) -> Json:
    """Return the schema of a value of this type, or of none."""
    return {"type": [kind, "null"]}


_REASON = {"description": "stop, length, tool_calls or content_filter"} | nullable("string")
_ENDING: Json = {
    "model": TEXT,
    "tokens_generated": COUNT | {"description": "An estimate where the upstream does not count."},
    "finish_reason": TEXT | {"description": "eos, stop, length or another of the upstream's"},
}
_ANSWER: Json = {"id": TEXT, "object": TEXT, "created": COUNT, "model": TEXT}

SCHEMAS: Json = {
    "Usage": made_of(
        {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
        "completion_tokens",
    ),
    "AnsweredMessage": made_of({"role": TEXT, "content": nullable("string")}, "content"),
    "ChatChoice": made_of(
        {
            "index": COUNT,
            "message": named("AnsweredMessage"),
            "logprobs": nullable("object"),
            "finish_reason": _REASON,
        },
        *("logprobs", "finish_reason"),
    ),
    "ChatCompletion": made_of(
        {**_ANSWER, "choices": listed(named("ChatChoice")), "usage": named("Usage")},
        *(*_ANSWER, "usage"),
    ),
    "TextChoice": made_of(
        {
            "index": COUNT,
            "text": TEXT,
            "logprobs": nullable("object"),
            "finish_reason": _REASON,
        },
        *("logprobs", "finish_reason"),
    ),
    "Completion": made_of(
        {**_ANSWER, "choices": listed(named("TextChoice")), "usage": named("Usage")},
        *(*_ANSWER, "usage"),
    ),
    "Model": made_of(
        {"id": TEXT, "object": TEXT, "created": COUNT, "owned_by": TEXT},
        *("object", "created", "owned_by"),
    ),
    "ModelList": made_of({"object": TEXT, "data": listed(named("Model"))}),
    "GeneratedText": made_of({"text": TEXT, **_ENDING}),
    "GeneratedMessage": made_of({"message": named("AnsweredMessage"), **_ENDING}),
    "CatalogEntry": made_of(
        {
            "id": TEXT,
            "name": TEXT,
            "description": TEXT,
            "size": TEXT,
            "capabilities": listed(TEXT),
        }
    ),
    "Catalog": made_of({"models": listed(named("CatalogEntry"))}),
    "Embeddings": made_of({"data": listed(OBJECT)}),
    "Health": made_of({"status": TEXT}),
    "Readiness": made_of({"status": TEXT, "llm_models_loaded": {"type": "boolean"}}),
    "Root": made_of({"message": TEXT}),
}
