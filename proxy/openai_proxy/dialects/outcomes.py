"""How a generation ends at KServe, Triton and their like, well or not, in OpenAI's words.

What they answer in case of an error, all of it translated:
    {"error": "text"}                            KServe, Triton; under 200, too
    data: {"error": "text"}                      Triton's streams, under an error's status
    {"error": {"message", "type", "param", ..}}  our predictor: passed, with its code
    {"detail": ..}, text, nothing                FastAPI, and whatever stands in between
"""

from __future__ import annotations

import re
from typing import Any

from openai_protocol.errors import ApiError, InvalidRequest
from openai_protocol.sse import MEDIA_TYPE, data_of, split_events
from openai_proxy.dialects.base import AnswerHead, Json, PassedError
from openai_proxy.dialects.openai import OpenAIDialect, invalid_response
from openai_proxy.dialects.upstream_errors import failed, unknown_model

_OPENAI = OpenAIDialect()
_REASONS = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
_UNFINISHED = frozenset({"", "none", "null"})  # vLLM under Triton writes Python's None
_FAILED = frozenset({"abort", "aborted", "error"})
_NO_SUCH_PATH = "The upstream has no such model, or does not speak this protocol (HTTP 404)."
_ABOUT_A_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)


def answered(value: Any) -> Json:
    """Return the object that an upstream has answered; raises BadGateway for anything else.

    Also for an error under 200: KServe and Triton know such.
    """
    if not isinstance(value, dict):
        raise invalid_response()
    if value.get("error"):
        raise failed()
    return value


def single(value: Any) -> Any:
    """Return the element of a list of one, else the value itself."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def finish_reason(told: Any) -> str | None:
    """Return why a text ends, None where it has not ended; raises BadGateway where it failed."""
    told = single(told)
    if not isinstance(told, str) or told.lower() in _UNFINISHED:
        return None
    if told.lower() in _FAILED:
        raise failed()
    return _REASONS.get(told.lower(), "stop")  # eos_token, stop_sequence and other names of it


def refusal(head: AnswerHead, body: bytes) -> ApiError:
    """Translate an answer with an error status."""
    if head.media_type == MEDIA_TYPE:
        events = split_events(body)
        body = (data_of(events[0]) or b"") if events else b""
    error = _OPENAI.error(head, body)
    if isinstance(error, PassedError) or not isinstance(error, InvalidRequest):
        return error
    if head.status == 424:  # the Open Inference Protocol's word for a failed generation
        return failed()
    if head.status == 404:  # the model stands in the path
        is_told = _ABOUT_A_MODEL.search(error.message)
        return unknown_model(error.message if is_told else _NO_SUCH_PATH)
    if head.status == 422:
        error.status = 400
    return error
