"""A stream that can go on elsewhere: what its comments say, and what a body says to resume it.

Both servers use it: the predictor writes the comments and reads the body, a proxy reads the
comments and writes the body. docs/resume.md describes the protocol.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from openai_protocol.requests import TokenId
from openai_protocol.validation import check_request

HEADER = "x-resumable"
FIELD = "resume"
PREFIX = b": resume "  # begins the line of each comment
MAX_CHOICES = 128 * 128  # as many prompts as a request may have, as many choices of each

# ids and hashes: what can stand in a line of JSON, and in a log
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")]


class StreamHead(BaseModel):
    """What an answer is: its names, its seed, and what made it.

    `model_hash` is of the model's file, tokenizer included, `prompt_hash` of the prompts' tokens.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    id: Name
    created: int = Field(ge=0, lt=2**53)
    seed: int = Field(ge=-(2**63), lt=2**63)
    fingerprint: Name
    model_hash: Name
    prompt_hash: Name


class ResumedChoice(BaseModel):
    """What was received of one choice.

    `finish_reason` stands from the event on that has the last of the text; `ended` says that the
    event which tells the client of the end has come, too.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    index: int = Field(ge=0, lt=MAX_CHOICES)
    tokens: Annotated[list[TokenId], Field(fail_fast=True)] = []
    finish_reason: Literal["stop", "length"] | None = None
    ended: bool = False

    @model_validator(mode="after")
    def _ends_for_a_reason(self) -> ResumedChoice:
        if self.ended and self.finish_reason is None:
            raise PydanticCustomError(
                "ended_without_reason", "a choice that has ended has a 'finish_reason'"
            )
        return self


class Resume(StreamHead):
    """The body's field `resume`: what was received of a stream that broke.

    A choice that is not named has not begun: nothing of it was received. `usage` says that the
    event with the usage was.
    """

    choices: Annotated[list[ResumedChoice], Field(max_length=MAX_CHOICES, fail_fast=True)] = []
    usage: bool = False


class _Body(BaseModel):
    resume: Resume


def parse_resume(value: Any) -> Resume:
    """Check the field of a decoded body; raises InvalidRequest that names what is wrong in it."""
    return check_request(_Body, {FIELD: value}).resume


def head_comment(head: StreamHead) -> bytes:
    """Return the line before a stream's first event."""
    return _comment(head.model_dump(include=set(StreamHead.model_fields)))


def choice_comment(
    index: int, tokens: list[int], finish_reason: str | None = None, ended: bool = False
) -> bytes:
    """Return the line before an event of a choice: its tokens since the last one."""
    said: dict[str, Any] = {"index": index, "tokens": tokens}
    if finish_reason is not None:
        said["finish_reason"] = finish_reason
    if ended:
        said["ended"] = True
    return _comment(said)


def usage_comment() -> bytes:
    """Return the line before the event with the usage."""
    return _comment({"usage": True})


def _comment(said: dict[str, Any]) -> bytes:
    return PREFIX + json.dumps(said, separators=(",", ":")).encode() + b"\n"


class ResumeReader:
    """Keeps what is needed to resume one stream; owner: who forwards that stream.

    It goes on over several answers: what a resumed one says is added to what there was.
    """

    def __init__(self) -> None:
        self._head: StreamHead | None = None
        self._choices: dict[int, ResumedChoice] = {}
        self._has_usage = False

    def read(self, event: bytes) -> None:
        """Take a whole event, lines ended by newlines; those without comments say nothing.

        Raises ValueError for a comment that cannot be understood: the stream cannot be resumed.
        """
        for line in event.split(b"\n"):
            if line.startswith(PREFIX):
                self._take(line.removeprefix(PREFIX))

    def _take(self, data: bytes) -> None:
        said = from_json(data)
        if not isinstance(said, dict):
            raise ValueError("a comment is no object")
        try:
            if "id" in said:
                self._head = StreamHead.model_validate(said)
            elif "index" in said:
                self._add(ResumedChoice.model_validate(said))
            elif "usage" in said:
                self._has_usage = True
        except ValidationError as error:
            raise ValueError("a comment lacks something") from error

    def _add(self, new: ResumedChoice) -> None:
        choice = self._choices.setdefault(new.index, ResumedChoice(index=new.index))
        choice.tokens += new.tokens
        choice.finish_reason = new.finish_reason or choice.finish_reason
        choice.ended = choice.ended or new.ended

    def resume(self) -> dict[str, Any] | None:
        """Return the field for the next body; None before the first event."""
        if self._head is None:
            return None
        choices = [choice.model_dump(exclude_defaults=True) for choice in self._choices.values()]
        return {**self._head.model_dump(), "choices": choices, "usage": self._has_usage}


def without_resume(body: bytes) -> bytes:
    """Return a checked body's bytes without the field: it is for proxies, not for their clients."""
    fields = from_json(body)
    fields.pop(FIELD, None)
    return json.dumps(fields).encode()
