"""From a request's bytes to a checked model, or to an error that names the field."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from openai_protocol.errors import ErrorCode, InvalidRequest

RequestModel = TypeVar("RequestModel", bound=BaseModel)

# pydantic's error types that have a code of their own at OpenAI
_CODES: dict[str, ErrorCode] = {
    "missing": ErrorCode.MISSING_REQUIRED_PARAMETER,
    "missing_content": ErrorCode.MISSING_REQUIRED_PARAMETER,
    "json_invalid": ErrorCode.INVALID_JSON,
    "extra_forbidden": ErrorCode.UNKNOWN_PARAMETER,
    "string_too_long": ErrorCode.STRING_ABOVE_MAX_LENGTH,
    "too_long": ErrorCode.ARRAY_ABOVE_MAX_LENGTH,
}
_EMPTY = {"messages": ErrorCode.EMPTY_MESSAGES, "prompt": ErrorCode.EMPTY_PROMPT}
_BELOW = frozenset({"greater_than", "greater_than_equal"})
_ABOVE = frozenset({"less_than", "less_than_equal"})
_MAX_SHOWN = 80


def parse_request(model: type[RequestModel], body: bytes) -> RequestModel:
    """Parse and check a request body.

    Raises InvalidRequest with the field's name (`messages[0].content`) and a stable code;
    malformed JSON is reported with its line and column.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error) from None


def check_request(model: type[RequestModel], value: Any) -> RequestModel:
    """Check a request that was already decoded from JSON; raises as `parse_request` does."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid_request(error) from None


def invalid_request(error: ValidationError) -> InvalidRequest:
    """Turn pydantic's report into one error about the first field that is wrong."""
    details = _of_meant_branch(error.errors(include_url=False))
    param = field_path(details["loc"]) or None
    if details["type"] == "missing_content":
        param = f"{param}.content"
    code = _code(details, param)
    message = _message(code, param, details)
    return InvalidRequest(message, param=param, code=code)


def field_path(loc: tuple[int | str, ...]) -> str:
    """Write a location as OpenAI does: `messages[0].content[1].text`."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in _UNION_TAGS:
            path += f".{part}" if path else part
    return path


def _of_meant_branch(errors: list[ErrorDetails]) -> ErrorDetails:
    """Of the complaints about the first wrong field, return the one that helps its author.

    The branches of a union complain one by one. One that complains of more than a wrong type was
    meant; else the one that got furthest, in depth or along a list.
    """
    field = errors[0]["loc"][:1]
    first_of_branch: dict[tuple[str, ...], ErrorDetails] = {}
    for details in errors:
        if details["loc"][:1] == field:
            branch = tuple(part for part in details["loc"] if isinstance(part, str))
            first_of_branch.setdefault(branch, details)

    def progress(details: ErrorDetails) -> tuple[bool, int, list[int]]:
        loc = details["loc"]
        is_constraint = not details["type"].endswith("_type")
        return is_constraint, len(loc), [part for part in loc if isinstance(part, int)]

    return max(first_of_branch.values(), key=progress)


# pydantic puts the branch of a union into the location, under these names
_UNION_TAGS = frozenset({"str", "int", "float", "bool", "none"})


def _code(details: ErrorDetails, param: str | None) -> ErrorCode:
    kind = details["type"]
    if kind in _CODES:
        return _CODES[kind]
    if kind == "too_short":
        return _EMPTY.get((param or "").partition("[")[0], ErrorCode.INVALID_VALUE)
    if kind in _BELOW or kind in _ABOVE:
        # the bound has the field's type; a whole number may be sent for a decimal one
        whole = all(isinstance(bound, int) for bound in details.get("ctx", {}).values())
        if kind in _BELOW:
            return ErrorCode.INTEGER_BELOW_MIN_VALUE if whole else ErrorCode.DECIMAL_BELOW_MIN_VALUE
        return ErrorCode.INTEGER_ABOVE_MAX_VALUE if whole else ErrorCode.DECIMAL_ABOVE_MAX_VALUE
    if kind.endswith(("_type", "_parsing")) or kind == "int_from_float":
        return ErrorCode.INVALID_TYPE
    return ErrorCode.INVALID_VALUE


def _message(code: ErrorCode, param: str | None, details: ErrorDetails) -> str:
    reason = details["msg"]
    if code is ErrorCode.INVALID_JSON:
        cause = details.get("ctx", {}).get("error", reason)
        return f"We could not parse the JSON body of your request: {cause}."
    if code is ErrorCode.MISSING_REQUIRED_PARAMETER:
        return f"Missing required parameter: '{param}'."
    if code in (ErrorCode.EMPTY_MESSAGES, ErrorCode.EMPTY_PROMPT):
        return f"'{param}' is empty: send at least one."
    if code is ErrorCode.UNKNOWN_PARAMETER:
        return f"Unknown parameter: '{param}'."
    value = details.get("input")
    shown = ""
    if isinstance(value, bool | int | float | str) and len(str(value)) <= _MAX_SHOWN:
        shown = f", but got {value!r}"
    where = f"'{param}'" if param else "request body"
    return f"Invalid {where}: {reason[:1].lower()}{reason[1:]}{shown}."
