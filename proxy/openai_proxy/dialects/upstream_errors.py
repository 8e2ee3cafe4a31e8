"""What an upstream says went wrong, in OpenAI's form and with a code of ours."""

from __future__ import annotations

from dataclasses import replace

from openai_protocol.errors import ApiError, BadGateway, ErrorCode, NotFound
from openai_proxy.dialects.base import AnswerHead, Json
from openai_proxy.dialects.openai import GENERIC, MAX_ERROR_TEXT, OpenAIDialect
from openai_proxy.dialects.reading import json_value, to_json

_OPENAI = OpenAIDialect()


def upstream_error(head: AnswerHead, body: bytes) -> ApiError:
    """Translate an answer with an error status; texts of 5xx errors are not passed.

    Half an envelope (`{"error": {"message"}}`) is made whole: only its text and field are taken.
    """
    value = json_value(body)
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        body = _flat(value["error"])
    if head.status == 424:  # "failed dependency": how TGI says that it failed itself
        head = replace(head, status=500)
    return _OPENAI.error(head, body)


def told_error(status: int, text: str) -> ApiError:
    """Return the error that an upstream told in the middle of a stream, or under status 200."""
    return upstream_error(AnswerHead(status, ""), to_json({"error": text}))


def failed() -> BadGateway:
    """Return the error for an upstream that failed and says no more, or nothing for strangers."""
    return BadGateway(GENERIC, code=ErrorCode.UPSTREAM_ERROR)


def unknown_model(text: str) -> NotFound:
    """Return the error for a model that the upstream does not have."""
    return NotFound(text[:MAX_ERROR_TEXT], param="model", code=ErrorCode.MODEL_NOT_FOUND)


def _flat(envelope: Json) -> bytes:
    return to_json({"error": envelope.get("message"), "param": envelope.get("param")})
