"""What an upstream says went wrong, in OpenAI's form and with a code of ours.

What they answer in case of an error, all of it translated:
    {"error": "text"}                            Ollama, TGI, KServe, Triton; under 200, too
    data: {"error": "text"}                      Triton's streams, under an error's status
    {"error": {"message"}}                       SGLang: half an envelope
    {"error": {"message", "type", "param", ..}}  our predictor, behind KServe's protocols
    {"detail": ..}, text, nothing                FastAPI, and whatever stands in between
"""

from __future__ import annotations

import re
from typing import Any

from openai_protocol.errors import ApiError, BadGateway, ErrorCode, InvalidRequest, NotFound
from openai_protocol.sse import MEDIA_TYPE, data_of, split_events
from openai_proxy.dialects.base import AnswerHead, Json, PassedError
from openai_proxy.dialects.fields import json_value, to_json
from openai_proxy.dialects.openai import (
    GENERIC,
    MAX_ERROR_TEXT,
    OpenAIDialect,
    invalid_response,
)

_OPENAI = OpenAIDialect()  # knows what errors look like
_NO_SUCH_PATH = "The upstream has no such model, or does not speak this protocol (HTTP 404)."
_ABOUT_A_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)


def answered(value: Any) -> Json:
    """Return the object that an upstream has answered; raises BadGateway for anything else.

    Also for an error under 200, which KServe, Triton and Ollama know.
    """
    if not isinstance(value, dict):
        raise invalid_response()
    if value.get("error"):
        raise failed()
    return value


def upstream_error(head: AnswerHead, body: bytes) -> ApiError:
    """Translate an answer with an error status; texts of 5xx errors are not passed.

    Half an envelope (`{"error": {"message"}}`) is made whole: only its text and field are taken.
    """
    value = json_value(body)
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        body = _flat(value["error"])
    return _translated(head, body)


def protocol_error(head: AnswerHead, body: bytes) -> ApiError:
    """Translate an error of KServe's protocols, or of Triton's: their paths name the model.

    An envelope passes: our predictor's are clean.
    """
    if head.media_type == MEDIA_TYPE:
        events = split_events(body)
        body = (data_of(events[0]) or b"") if events else b""
    error = _translated(head, body)
    if isinstance(error, PassedError) or not isinstance(error, InvalidRequest):
        return error
    if head.status == 404:
        is_told = _ABOUT_A_MODEL.search(error.message)
        return unknown_model(error.message if is_told else _NO_SUCH_PATH)
    if head.status == 422:
        error.status = 400
    return error


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


def _translated(head: AnswerHead, body: bytes) -> ApiError:
    # "failed dependency": how TGI and the Open Inference Protocol say that a generation failed
    return _OPENAI.error(head._replace(status=500) if head.status == 424 else head, body)
