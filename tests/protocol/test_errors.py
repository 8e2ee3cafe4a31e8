"""The errors: their tree, their envelope, their headers."""

from __future__ import annotations

import json
import re

import pytest

from openai_protocol import errors
from openai_protocol.errors import (
    ApiError,
    ErrorCode,
    InvalidRequest,
    RateLimited,
    Unavailable,
    http_error,
    internal_error,
    missing_parameter,
    model_not_found,
    wrong_type,
)

_TREE_LINE = re.compile(
    r"^ {4}(?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<status>\d{3}) *(?P<type>\w*)"
    r" *(?P<retry>\(Retry-After\))?$"
)


def _documented_tree() -> list[tuple[str, int, re.Match[str]]]:
    """Return the tree of the module's docstring: name, depth and the line's parts."""
    lines = (errors.__doc__ or "").splitlines()
    matches = [match for line in lines if (match := _TREE_LINE.match(line))]
    return [(match["name"], len(match["indent"]) // 4, match) for match in matches]


def _actual_tree(cls: type[ApiError], depth: int = 0) -> list[tuple[str, int]]:
    tree = [(cls.__name__, depth)]
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            tree += _actual_tree(child, depth + 1)
    return tree


def test_the_docstrings_tree_is_the_class_tree() -> None:
    """The tree that the module opens with names every class, each under its base, in order."""
    documented = [(name, depth) for name, depth, _ in _documented_tree()]

    assert [("ApiError", 0), *documented] == _actual_tree(ApiError)


@pytest.mark.parametrize("name", [name for name, _, _ in _documented_tree()])
def test_the_docstrings_statuses_and_types_are_the_classes(name: str) -> None:
    """A line of the tree tells the status and the type that the client gets."""
    (line,) = [match for documented, _, match in _documented_tree() if documented == name]
    error = getattr(errors, name)("text")

    assert error.status == int(line["status"])
    # a type that is not written is the one of the class above
    assert error.type == (line["type"] or InvalidRequest.type)


@pytest.mark.parametrize("code", ErrorCode)
def test_codes_are_written_as_openai_writes_them(code: ErrorCode) -> None:
    """A code is lower case, in words joined by underscores, and named after itself."""
    assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", code.value)
    assert code.name == code.value.upper()


def test_every_class_has_a_listed_code() -> None:
    """An error that is raised without a code still has one of the listed ones."""
    for name, _ in _actual_tree(ApiError):
        assert getattr(errors, name)("text").code in set(ErrorCode)


def test_the_envelope_is_openais() -> None:
    """The body is `{"error": {...}}` with message, type, param and code, as UTF-8 JSON."""
    error = InvalidRequest("zu groß", param="n", code=ErrorCode.UNSUPPORTED_VALUE)

    assert json.loads(error.body().decode("utf-8")) == {
        "error": {
            "message": "zu groß",
            "type": "invalid_request_error",
            "param": "n",
            "code": "unsupported_value",
        }
    }


def test_a_param_that_is_not_known_is_null() -> None:
    """Clients find all four keys in every error."""
    assert json.loads(internal_error().body())["error"]["param"] is None


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (2.4, "2"), (30.0, "30")])
def test_retry_after_is_whole_seconds_and_at_least_one(seconds: float, header: str) -> None:
    """Clients read Retry-After as an integer, and 0 would make them come back at once."""
    error = RateLimited("full", retry_after_seconds=seconds)

    assert error.headers() == {"retry-after": header}


def test_without_a_known_time_there_is_no_retry_after() -> None:
    """An error promises no time that nobody knows."""
    assert Unavailable("down").headers() == {}


def test_a_code_given_to_one_error_stays_with_it() -> None:
    """Overriding status, type and code changes that error alone."""
    special = InvalidRequest("x", code="other", status=418, type="teapot")

    assert (special.status, special.type, special.code) == (418, "teapot", "other")
    plain = InvalidRequest("x")
    assert (plain.status, plain.type, plain.code) == (
        400,
        "invalid_request_error",
        ErrorCode.INVALID_VALUE,
    )


def test_an_unknown_model_is_404_and_names_the_field() -> None:
    """An unknown model gets OpenAI's status, code and param; a long name is cut."""
    error = model_not_found("m" * 10_000)

    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "unknown_url"),
        (405, "method_not_allowed"),
        (415, "invalid_value"),
        (500, "internal_error"),
        (503, "internal_error"),
    ],
)
def test_what_a_framework_refuses_keeps_its_status(status: int, code: str) -> None:
    """A framework's refusal becomes an error with the same status and a listed code."""
    error = http_error(status, "GET", "/nowhere")

    assert (error.status, error.code) == (status, code)


def test_what_is_missing_or_of_another_type_is_named() -> None:
    """A field that is missing, or has another type, is named in OpenAI's words."""
    missing = missing_parameter("tools[0].function", "it has a name")
    assert (missing.param, missing.code) == ("tools[0].function", "missing_required_parameter")
    assert missing.message == "Missing required parameter: 'tools[0].function': it has a name."
    assert missing_parameter("model").message == "Missing required parameter: 'model'."
    wrong = wrong_type("tools", "a list")
    assert (wrong.param, wrong.code) == ("tools", "invalid_type")
    assert wrong.message == "Invalid 'tools': input should be a list."


def test_5xx_texts_say_nothing_of_the_inside() -> None:
    """The text of an internal error does not depend on what happened where."""
    assert http_error(500, "GET", "/secret/path").message == internal_error().message
