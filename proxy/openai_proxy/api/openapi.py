"""The API's description in OpenAPI 3.1, made of what is served and of the requests' own models."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy import __version__
from openai_proxy.api.catalog import CATALOG
from openai_proxy.api.generate import (
    API_CHAT,
    GENERATE,
    GENERATE_STREAM,
    ChatRequest,
    GenerateRequest,
)
from openai_proxy.api.openapi_schemas import OBJECT, SCHEMAS, TEXT, Json, named
from openai_proxy.api.passing import PASSED
from openai_proxy.dialects.base import CHAT, COMPLETIONS
from openai_proxy.error_forms import ErrorForm

_JSON = "application/json"
_EVENTS = "text/event-stream"
_TEMPLATE = "#/components/schemas/{model}"
# Served by FastAPI, which the table of paths knows nothing of.
DECLARED = ("/v1/models", "/v1/models/{model}")
_REQUESTS: tuple[type[BaseModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    GenerateRequest,
    ChatRequest,
    *dict.fromkeys(PASSED.values()),
)
ERRORS = {
    "400": "The request is wrong; the error names the field.",
    "404": "No such model.",
    "413": "The body is too long.",
    "429": "Too many requests; Retry-After says when to come back.",
    "502": "The upstream cannot be reached, or its answer cannot be understood.",
    "503": "There is no model that is ready.",
    "504": "The deadline passed.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint; `answer` and `request` are schemas, None where there is no JSON."""

    method: str
    path: str
    tag: str
    summary: str
    answer: Json | None
    request: Json | None = None
    streams: bool = False
    media_type: str = _JSON
    other_status: str | None = None  # with the same answer


def _post(path: str, summary: str, request: str, answer: Json | None, streams: bool) -> Operation:
    tag = "other forms" if path.startswith("/api") else "OpenAI"
    return Operation("post", path, tag, summary, answer, named(request), streams)


def _get(path: str, tag: str, summary: str, answer: str, other: str | None = None) -> Operation:
    return Operation("get", path, tag, summary, named(answer), other_status=other)


OPERATIONS = (
    _post(CHAT, "Answer a conversation.", "ChatCompletionRequest", named("ChatCompletion"), True),
    _post(COMPLETIONS, "Go on with a text.", "CompletionRequest", named("Completion"), True),
    _post(
        "/v1/embeddings", "Embed texts.", "EmbeddingsRequest", named("Embeddings"), streams=False
    ),
    _post("/v1/rerank", "Rank documents by a query.", "RerankRequest", OBJECT, streams=False),
    _post("/rerank", "Rank documents by a query.", "RerankRequest", OBJECT, streams=False),
    _post("/tokenize", "Turn text into tokens.", "PassedRequest", OBJECT, streams=False),
    _post("/detokenize", "Turn tokens into text.", "PassedRequest", OBJECT, streams=False),
    _get("/v1/models", "OpenAI", "List the models.", "ModelList"),
    _get("/v1/models/{model}", "OpenAI", "Describe a model.", "Model"),
    _post(GENERATE, "Go on with a text.", "GenerateRequest", named("GeneratedText"), True),
    _post(GENERATE_STREAM, "Go on with a text, piece by piece.", "GenerateRequest", None, True),
    _post(API_CHAT, "Answer a conversation.", "ChatRequest", named("GeneratedMessage"), True),
    _get(CATALOG, "other forms", "List the models in words.", "Catalog"),
    _get("/", "state", "Tell that there is a server.", "Root"),
    _get("/health", "state", "Tell of the server and its upstream.", "Health", "503"),
    _get("/health/live", "state", "Tell that the server runs.", "Health"),
    _get("/health/ready", "state", "Tell whether to send requests.", "Readiness", "503"),
    Operation("get", "/metrics", "state", "All metrics.", TEXT, media_type="text/plain"),
)


def document(known: Collection[str], form: ErrorForm, server: str) -> Json:
    """Return the document of the endpoints that are served; `server` is relative to its own URL."""
    paths: Json = {}
    for operation in OPERATIONS:
        for path in (operation.path, f"/v1{operation.path}"):
            if path in known or path in DECLARED:
                paths[path] = {operation.method: _described(operation, path)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "OpenAI proxy",
            "version": __version__,
            "description": "An OpenAI API in front of model servers.",
        },
        "servers": [{"url": server}],
        "paths": paths,
        "components": {"schemas": _schemas(form), "responses": _error_responses()},
    }


def _described(operation: Operation, path: str) -> Json:
    described: Json = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method}{path}").strip("_"),
        "responses": _responses(operation),
    }
    if operation.request is not None:
        content = {_JSON: {"schema": operation.request}}
        described["requestBody"] = {"required": True, "content": content}
    names = re.findall(r"\{(\w+)\}", path)
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": TEXT} for name in names
        ]
    return described


def _responses(operation: Operation) -> Json:
    content: Json = {}
    if operation.answer is not None:
        content[operation.media_type] = {"schema": operation.answer}
    if operation.streams:
        content[_EVENTS] = {}  # OpenAPI 3.1 has no schema for the events of a stream
    responses: Json = {"200": {"description": "The answer.", "content": content}}
    if operation.other_status is not None:
        responses[operation.other_status] = {"description": "Not ready.", "content": content}
    for status in ERRORS if operation.tag != "state" else ():
        responses[status] = {"$ref": f"#/components/responses/Error{status}"}
    responses["default"] = {"$ref": "#/components/responses/Error"}
    return responses


def _error_responses() -> Json:
    headers = {
        "x-request-id": {"schema": TEXT, "description": "The request's id, as the log has it."},
        "retry-after": {"schema": TEXT, "description": "Seconds until another try makes sense."},
    }
    content = {_JSON: {"schema": named("Error")}}
    made = {
        f"Error{status}": {"description": text, "content": content, "headers": headers}
        for status, text in ERRORS.items()
    }
    made["Error"] = {"description": "Any other error.", "content": content, "headers": headers}
    return made


def _schemas(form: ErrorForm) -> Json:
    _, requests = models_json_schema(
        [(model, "validation") for model in _REQUESTS], ref_template=_TEMPLATE
    )
    assert not set(requests["$defs"]) & set(SCHEMAS)
    return {**requests["$defs"], **SCHEMAS, "Error": form.schema}
