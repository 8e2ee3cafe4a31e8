"""The forms in which errors reach clients: OpenAI's, and those of the systems that this replaces.

    openai  {"error": {"message", "type", "param", "code"}}, and `legacy_code` where there was one
    seed    the same envelope, with the old codes and statuses
    flat    {"error": "text", "code": "OLD_CODE"}

Pure. `RenderErrors` puts the form into each request's scope; whoever writes an error takes it from
there, so that a form is chosen in one place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Protocol

from pydantic_core import from_json

from openai_protocol.errors import ApiError, ErrorCode

Json = dict[str, Any]
_KEY = "openai_proxy.error_form"
_MAX_CODE_LENGTH = 64

# The codes that the documents of those systems name; the default form tells them, too.
DOCUMENTED = {
    "empty_messages": "EMPTY_MESSAGES",
    "model_not_allowed": "MODEL_NOT_ALLOWED",
    "upstream_connection_failed": "PROVIDER_CONNECTION_FAILED",
}
# Other codes of theirs that are not ours in upper case.
_RENAMED = {
    "model_not_found": "MODEL_NOT_AVAILABLE",
    "request_timeout": "PROVIDER_TIMEOUT",
    "upstream_error": "PROVIDER_REQUEST_FAILED",
    "upstream_invalid_response": "PROVIDER_INVALID_RESPONSE",
    "upstream_stream_broken": "PROVIDER_STREAM_BROKEN",
}
_STATUSES = {"model_not_allowed": 400}
_TEXTS = {
    "empty_messages": "Messages array cannot be empty",
    "upstream_connection_failed": "Connection failed: error sending request",
}
# A wrong value of a field: the old code names the field.
_WRONG_VALUES = frozenset(
    {
        *(ErrorCode.INVALID_TYPE, ErrorCode.INVALID_VALUE),
        *(ErrorCode.INTEGER_BELOW_MIN_VALUE, ErrorCode.INTEGER_ABOVE_MAX_VALUE),
        *(ErrorCode.DECIMAL_BELOW_MIN_VALUE, ErrorCode.DECIMAL_ABOVE_MAX_VALUE),
    }
)
_OUR_CODES = frozenset({*(str(code) for code in ErrorCode), *DOCUMENTED})
_FIELD = re.compile(r"[a-z][a-z_]*")

_TEXT = {"type": "string"}
_ENVELOPE = {
    "message": _TEXT,
    "type": _TEXT,
    "param": {"type": ["string", "null"]},
    # upstreams' own errors pass, and some have a number here
    "code": {"type": ["string", "integer", "null"]},
}


class ErrorForm(Protocol):
    """How an error is told."""

    @property
    def schema(self) -> Json:
        """The body, as JSON Schema."""

    def status(self, error: ApiError) -> int:
        """Return the HTTP status."""

    def body(self, error: ApiError) -> bytes:
        """Return the body as UTF-8 JSON on one line, which is an event's data, too."""


class OpenAIForm:
    """OpenAI's envelope; an upstream's own envelope passes as it is."""

    schema: ClassVar[Json] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message"],
                "properties": _ENVELOPE | {"legacy_code": {"enum": sorted(DOCUMENTED.values())}},
            }
        },
    }

    def status(self, error: ApiError) -> int:
        """Return the error's own status."""
        return error.status

    def body(self, error: ApiError) -> bytes:
        """Return the envelope, with the old code where the documents name one."""
        documented = DOCUMENTED.get(str(error.code))
        if documented is None or _is_passed(error):
            return error.body()
        envelope = error.envelope()
        envelope["error"]["legacy_code"] = documented
        return _json(envelope)


class SeedForm:
    """OpenAI's envelope with the old codes, statuses and texts."""

    schema: ClassVar[Json] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "object", "required": ["message", "code"], "properties": _ENVELOPE}
        },
    }

    def status(self, error: ApiError) -> int:
        """Return the old status, where it was another."""
        return _STATUSES.get(str(error.code), error.status)

    def body(self, error: ApiError) -> bytes:
        """Return the envelope with the old code and text."""
        told = _told(error)
        changed = {"message": old_text(error), "code": old_code(error)}
        return _json({"error": {**told, **changed}})


class FlatForm(SeedForm):
    """A text and an old code, without an envelope; statuses as the other old form has them."""

    schema: ClassVar[Json] = {
        "type": "object",
        "required": ["error", "code"],
        "properties": {"error": _TEXT, "code": _TEXT},
    }

    def body(self, error: ApiError) -> bytes:
        """Return text and code side by side."""
        return _json({"error": old_text(error), "code": old_code(error)})


FORMS: Mapping[str, ErrorForm] = {"openai": OpenAIForm(), "seed": SeedForm(), "flat": FlatForm()}


def attach(scope: MutableMapping[str, Any], form: ErrorForm) -> None:
    """Put the form into an ASGI scope."""
    scope[_KEY] = form


def form_of(scope: Mapping[str, Any]) -> ErrorForm:
    """Return the form of an ASGI scope; OpenAI's where none was chosen."""
    form: ErrorForm = scope.get(_KEY, FORMS["openai"])
    return form


def old_code(error: ApiError) -> str:
    """Return the code that the old systems had for this, in their upper case."""
    code = str(error.code)
    if code not in _OUR_CODES:
        return "PROVIDER_REQUEST_FAILED"  # an upstream's own: nobody knows which there are
    param = _told(error).get("param")
    field = _FIELD.match(param) if isinstance(param, str) else None
    if code in _WRONG_VALUES and field is not None:
        return f"INVALID_{field[0].upper()}"[:_MAX_CODE_LENGTH]
    if code == ErrorCode.MISSING_REQUIRED_PARAMETER and str(param).endswith(".content"):
        return "NO_CONTENT"
    return DOCUMENTED.get(code) or _RENAMED.get(code) or code.upper()


def old_text(error: ApiError) -> str:
    """Return the text as the documents have it, where they have one; else the error's own."""
    text = _TEXTS.get(str(error.code)) or _told(error).get("message")
    return text if isinstance(text, str) else error.message


def _told(error: ApiError) -> Json:
    """Return what the error's own envelope holds; an upstream's may hold anything."""
    if not _is_passed(error):
        envelope: Json = error.envelope()["error"]
        return envelope
    try:
        value = from_json(error.body())
    except ValueError:
        return {}
    told = value.get("error") if isinstance(value, dict) else None
    return told if isinstance(told, dict) else {}


def _is_passed(error: ApiError) -> bool:
    """Whether it is an upstream's own error, which has a body of its own (`PassedError`)."""
    return type(error).body is not ApiError.body


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
