"""What a client is told when something goes wrong.

    ApiError                    status, code, type, message, param
    ├── InvalidRequest          400  invalid_request_error
    │   ├── NotFound            404
    │   ├── MethodNotAllowed    405
    │   ├── Conflict            409
    │   └── RequestTooLarge     413
    ├── RateLimited             429  rate_limit_error      (Retry-After)
    ├── InternalError           500  server_error
    ├── BadGateway              502  server_error
    ├── Unavailable             503  server_error          (Retry-After)
    └── DeadlineExceeded        504  server_error

Every error reaches the client as `{"error": {"message", "type", "param", "code"}}`; `code` is one
of `ErrorCode` and stable. Texts of 5xx errors say nothing of the inside of a server.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

OVERLOADED_RETRY_SECONDS = 2.0


class ErrorCode(StrEnum):
    """Every code that this project puts in an error, in OpenAI's lower case."""

    # 400: the request is not well formed
    INVALID_JSON = "invalid_json"
    INVALID_TYPE = "invalid_type"
    INVALID_VALUE = "invalid_value"
    MISSING_REQUIRED_PARAMETER = "missing_required_parameter"
    UNKNOWN_PARAMETER = "unknown_parameter"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    UNSUPPORTED_VALUE = "unsupported_value"
    INTEGER_BELOW_MIN_VALUE = "integer_below_min_value"
    INTEGER_ABOVE_MAX_VALUE = "integer_above_max_value"
    DECIMAL_BELOW_MIN_VALUE = "decimal_below_min_value"
    DECIMAL_ABOVE_MAX_VALUE = "decimal_above_max_value"
    STRING_ABOVE_MAX_LENGTH = "string_above_max_length"
    ARRAY_ABOVE_MAX_LENGTH = "array_above_max_length"
    # 400: the request is well formed, but cannot be served
    EMPTY_MESSAGES = "empty_messages"
    EMPTY_PROMPT = "empty_prompt"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    CHAT_TEMPLATE_FAILED = "chat_template_failed"
    NO_CHAT_TEMPLATE = "no_chat_template"
    # 401, 403, 404, 405, 409, 413
    CLIENT_CERTIFICATE_REQUIRED = "client_certificate_required"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    HOST_NOT_ALLOWED = "host_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    UNKNOWN_URL = "unknown_url"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    RESUME_MISMATCH = "resume_mismatch"
    REQUEST_TOO_LARGE = "request_too_large"
    # 429
    QUEUE_FULL = "queue_full"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    # 5xx
    INTERNAL_ERROR = "internal_error"
    ENGINE_FAILED = "engine_failed"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_CONNECTION_FAILED = "upstream_connection_failed"
    UPSTREAM_INVALID_RESPONSE = "upstream_invalid_response"
    UPSTREAM_STREAM_BROKEN = "upstream_stream_broken"
    MODEL_NOT_READY = "model_not_ready"
    SERVER_OVERLOADED = "server_overloaded"
    QUEUE_TIMEOUT = "queue_timeout"
    SERVER_SHUTTING_DOWN = "server_shutting_down"
    REQUEST_TIMEOUT = "request_timeout"


class ApiError(Exception):
    """An error with the status and the envelope that its client gets.

    `retry_after_seconds` becomes the Retry-After header (whole seconds, at least 1), `should_retry`
    the one by which OpenAI's clients decide whether they try again by themselves.
    """

    status: int = 500
    type: str = "server_error"
    code: str = ErrorCode.INTERNAL_ERROR

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        type: str | None = None,  # OpenAI's own name for the field
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = str(code)
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type
        self.retry_after_seconds = retry_after_seconds
        self.should_retry: bool | None = None

    def envelope(self) -> dict[str, Any]:
        """Return the body that the client gets: `{"error": {...}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": str(self.code),
            }
        }

    def body(self) -> bytes:
        """Return the envelope as UTF-8 JSON."""
        return json.dumps(self.envelope(), ensure_ascii=False).encode()

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the error: Retry-After, where it is known."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after_seconds)))
        if self.should_retry is not None:
            headers["x-should-retry"] = str(self.should_retry).lower()
        return headers


class InvalidRequest(ApiError):
    """The client's request is wrong; sending it again will not help."""

    status = 400
    type = "invalid_request_error"
    code = ErrorCode.INVALID_VALUE


class NotFound(InvalidRequest):
    """There is no such model or path."""

    status = 404
    code = ErrorCode.UNKNOWN_URL


class MethodNotAllowed(InvalidRequest):
    """The path exists, but not for this HTTP method."""

    status = 405
    code = ErrorCode.METHOD_NOT_ALLOWED


class Conflict(InvalidRequest):
    """A stream is to be resumed where it would not go on as it was."""

    status = 409
    code = ErrorCode.RESUME_MISMATCH


class RequestTooLarge(InvalidRequest):
    """The body is over the size limit."""

    status = 413
    code = ErrorCode.REQUEST_TOO_LARGE


class RateLimited(ApiError):
    """The server, or the client's share of it, is full; come back later."""

    status = 429
    type = "rate_limit_error"
    code = ErrorCode.RATE_LIMIT_EXCEEDED


class InternalError(ApiError):
    """Something failed inside; the text says no more than that."""


class BadGateway(ApiError):
    """An upstream failed or answered what cannot be understood."""

    status = 502
    code = ErrorCode.UPSTREAM_ERROR


class Unavailable(ApiError):
    """The server cannot serve this now, but will again."""

    status = 503
    code = ErrorCode.MODEL_NOT_READY


class DeadlineExceeded(ApiError):
    """The request took longer than it may."""

    status = 504
    code = ErrorCode.REQUEST_TIMEOUT


def overloaded(why: str) -> Unavailable:
    """Return the error for what the server has no room for just now; `why` is a sentence's text."""
    return Unavailable(
        f"{why}; please try again in a moment.",
        code=ErrorCode.SERVER_OVERLOADED,
        retry_after_seconds=OVERLOADED_RETRY_SECONDS,
    )


def missing_parameter(param: str, why: str = "") -> InvalidRequest:
    """Return the error for a field that must be there (OpenAI's wording); `why` may say more."""
    return InvalidRequest(
        f"Missing required parameter: '{param}'{why and ': '}{why}.",
        param=param,
        code=ErrorCode.MISSING_REQUIRED_PARAMETER,
    )


def wrong_type(param: str, wanted: str) -> InvalidRequest:
    """Return the error for a field of another type; `wanted`: "a list"."""
    return InvalidRequest(
        f"Invalid '{param}': input should be {wanted}.", param=param, code=ErrorCode.INVALID_TYPE
    )


def model_not_found(model: str) -> NotFound:
    """Return the error for a model name that nobody serves (OpenAI's wording)."""
    return NotFound(
        f"The model `{model[:256]}` does not exist or you do not have access to it.",
        param="model",
        code=ErrorCode.MODEL_NOT_FOUND,
    )


def internal_error(status: int = 500) -> InternalError:
    """Return the error for what went wrong inside (OpenAI's wording)."""
    return InternalError("The server had an error while processing your request.", status=status)


def http_error(status: int, method: str, path: str) -> ApiError:
    """Return the error for what a web framework refuses by itself: 404, 405 and the like."""
    if status == 404:
        return NotFound(f"Unknown request URL: {method} {path}. Please check the URL for typos.")
    if status == 405:
        return MethodNotAllowed(f"Not allowed to {method} on {path}.")
    if status >= 500:
        return internal_error(status)
    return InvalidRequest(f"The request was refused (HTTP {status}).", status=status)
