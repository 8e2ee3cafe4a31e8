"""What a client is told when its request is not served: one function for each cause."""

from __future__ import annotations

from openai_protocol.errors import (
    ApiError,
    ErrorCode,
    InternalError,
    InvalidRequest,
    RateLimited,
    Unavailable,
)

_REJECTIONS = {
    "context_length": ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    "empty_prompt": ErrorCode.EMPTY_PROMPT,
    "token_out_of_range": ErrorCode.INVALID_VALUE,
    "unreadable_prompt": ErrorCode.INVALID_VALUE,
}


def rejected(reason: str, message: str, field: str) -> ApiError:
    """The engine refuses the request, or it failed alone; `field` is the prompt's."""
    if reason in _REJECTIONS:
        return InvalidRequest(message, param=field, code=_REJECTIONS[reason])
    if reason == "ended_before":
        return InvalidRequest(f"Invalid 'resume': {message}.", param="resume")
    return InternalError("The model failed on this request.", code=ErrorCode.ENGINE_FAILED)


def not_ready(retry_after_seconds: float = 5.0) -> ApiError:
    """The model is loading, or its engine has failed and is tried again."""
    return Unavailable(
        "The model is not ready to answer requests.", retry_after_seconds=retry_after_seconds
    )


def queue_full(retry_after_seconds: float) -> ApiError:
    """As many requests wait as may."""
    return RateLimited(
        "The queue is full. Please try again later.",
        code=ErrorCode.QUEUE_FULL,
        retry_after_seconds=retry_after_seconds,
    )


def queue_timeout(retry_after_seconds: float) -> ApiError:
    """The request has waited as long as it may."""
    return Unavailable(
        "The request could not be started in time. Please try again later.",
        code=ErrorCode.QUEUE_TIMEOUT,
        retry_after_seconds=retry_after_seconds,
    )


def failed_often() -> ApiError:
    """Engine after engine died under the request, the last one with nothing else running."""
    return _guilty("The model's engine failed several times under this request.")


def failed_before() -> ApiError:
    """The same request has ended engines a few minutes ago."""
    return _guilty(
        "The model's engine failed several times under the same request a few minutes ago."
    )


def _guilty(message: str) -> ApiError:
    error = InternalError(message, code=ErrorCode.ENGINE_FAILED)
    error.should_retry = False
    return error


def engine_failed(retry_after_seconds: float) -> ApiError:
    """Too many engines died in a row; the next one is started after a pause."""
    return Unavailable(
        "The model's engine has failed; it is being started again. Please try again later.",
        code=ErrorCode.ENGINE_FAILED,
        retry_after_seconds=retry_after_seconds,
    )


def shutting_down() -> ApiError:
    """The server ends."""
    return Unavailable(
        "The server is shutting down.",
        code=ErrorCode.SERVER_SHUTTING_DOWN,
        retry_after_seconds=1.0,
    )
