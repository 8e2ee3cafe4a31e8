"""What a request's body may have at most: values, depth, messages; told by its bytes first.

How large it may be, each server checks while it reads.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.json_names import repeated_name
from openai_protocol.json_shape import (
    MAX_JSON_DEPTH,
    MAX_JSON_VALUES,
    NUMBERS_PER_VALUE,
    ShapeLimits,
)
from openai_protocol.requests import MAX_MESSAGES, ChatCompletionRequest
from openai_protocol.validation import parse_request

Parsed = TypeVar("Parsed", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Parses bodies within limits: how many values, how deep they are nested, how many messages.

    What upstreams read differently is refused, too: two fields of one name, of which one server
    takes the first and another the last, or names that only some take for the same.
    """

    max_json_depth: int = MAX_JSON_DEPTH
    max_messages: int = MAX_MESSAGES
    max_json_values: int = MAX_JSON_VALUES
    _shape: ShapeLimits = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make what is asked of each body once."""
        shape = ShapeLimits(self.max_json_values, self.max_json_depth)
        object.__setattr__(self, "_shape", shape)

    def parse(self, model: type[Parsed], body: bytes) -> Parsed:
        """Return the checked request; raises InvalidRequest that names the field.

        What costs much is asked of the bytes first; the parser has bounds of its own, too (200
        levels).
        """
        shape = self._shape.look_at(body)
        if shape.is_too_long:
            raise self._too_many()
        _refuse_constants(body)
        asked = parse_request(model, body)
        if shape.is_too_deep:
            self._refuse_depth(asked)
        if isinstance(asked, ChatCompletionRequest):
            self.check_messages(len(asked.messages))
        if asked.model_extra:
            _refuse_other_spellings(type(asked), asked.model_extra)
        if _may_have_twins(body, asked.model_fields_set):
            _refuse_twins(body)
        return asked

    def decode(self, body: bytes, depth_of_names: int = 1) -> Any:
        """Return the value of a body that no request model describes; raises InvalidRequest.

        No object may give a name twice, down to `depth_of_names` levels.
        """
        shape = self._shape.look_at(body)
        if shape.is_too_long:
            raise self._too_many()
        if shape.is_too_deep:
            raise self._too_deep(None)
        value = _decoded(body)
        _refuse_twins(body, depth_of_names)
        return value

    def check_messages(self, num_messages: int) -> None:
        """Raise InvalidRequest for a conversation of too many messages."""
        if num_messages > self.max_messages:
            raise self._too_many_messages(num_messages)

    def _too_many(self) -> InvalidRequest:
        return InvalidRequest(
            f"Invalid request body: it has more than {self.max_json_values} lists, objects and "
            f"texts, or more than {self.max_json_values * NUMBERS_PER_VALUE} values in all.",
            code=ErrorCode.INVALID_VALUE,
        )

    def _too_many_messages(self, num_messages: int) -> InvalidRequest:
        return InvalidRequest(
            f"Invalid 'messages': at most {self.max_messages} messages may be sent, but got "
            f"{num_messages}.",
            param="messages",
            code=ErrorCode.ARRAY_ABOVE_MAX_LENGTH,
        )

    def _refuse_depth(self, asked: BaseModel) -> None:
        """Raise InvalidRequest that says where the request is nested too deeply."""
        self._check_depth(asked.model_extra or {})
        if isinstance(asked, ChatCompletionRequest):
            for at, message in enumerate(asked.messages):
                self._check_depth(message.model_extra or {}, 3, f"messages[{at}]")
                if isinstance(message.content, list):
                    for part in message.content:
                        extra = part.model_extra or {}
                        self._check_depth(extra, 5, f"messages[{at}].content")
        raise self._too_deep(None)

    def _check_depth(self, value: Any, depth: int = 1, param: str | None = None) -> None:
        """Raise InvalidRequest where decoded JSON, itself at this depth, is nested too deeply."""
        level = [value]
        while level:
            if depth > self.max_json_depth:
                raise self._too_deep(param)
            depth += 1
            level = [
                inner
                for outer in level
                for inner in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(inner, (dict, list))
            ]

    def _too_deep(self, param: str | None) -> InvalidRequest:
        where = "request body" if param is None else f"'{param}'"
        return InvalidRequest(
            f"Invalid {where}: lists and objects are nested more than {self.max_json_depth} deep.",
            param=param,
            code=ErrorCode.INVALID_VALUE,
        )


def _refuse_constants(body: bytes) -> None:
    """Refuse NaN and Infinity, which are no JSON, though some parsers take them."""
    if b"NaN" in body or b"Infinity" in body:
        _decoded(body)


def _decoded(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {error}.",
            code=ErrorCode.INVALID_JSON,
        ) from None


def _refuse_other_spellings(model: type[BaseModel], names: Iterable[str]) -> None:
    known = model.model_fields
    for name in names:
        meant = name.casefold()
        if meant in known:
            raise InvalidRequest(
                f"Unknown parameter: '{name[:80]}'. Did you mean '{meant}'?",
                param=name[:80],
                code=ErrorCode.UNKNOWN_PARAMETER,
            )


# A letter that is written as an escape: no encoder does so.
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
_MAX_LOOKED_THROUGH = 16 * 1024 * 1024  # bytes, over all names
_MANY_FIELDS = 64


def _may_have_twins(body: bytes, names: set[str]) -> bool:
    """Tell whether a field may be given twice; quick, and seldom wrong."""
    if len(names) > _MANY_FIELDS or len(names) * len(body) > _MAX_LOOKED_THROUGH:
        return True  # to parse it once more takes no longer
    for name in names:
        quoted = _quoted(name)
        if body.count(quoted) != 1 and (len(re.findall(re.escape(quoted) + rb"\s*:", body)) != 1):
            return True  # or it stands in an inner object as well
    return b"\\u00" in body and _ESCAPED_LETTER.search(body) is not None


@functools.lru_cache(256)
def _quoted(name: str) -> bytes:
    return b'"%s"' % name.encode()


def _refuse_twins(body: bytes, depth: int = 1) -> None:
    name = repeated_name(body, depth)
    if name is not None:
        raise InvalidRequest(
            f"Invalid request body: the field '{name[:80]}' is given more than once.",
            param=name[:80],
            code=ErrorCode.INVALID_VALUE,
        )
