"""Streams that can go on in another predictor: who asks for one, and what it goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import msgspec

from kserve_llamacpp.engine_client.generation import Delta, Generation, Request
from kserve_llamacpp.wire.frames import ModelFacts
from openai_protocol import resume as protocol
from openai_protocol.errors import Conflict, InvalidRequest
from openai_protocol.requests import GenerationRequest
from openai_protocol.responses import Json
from openai_protocol.resume import Resume, ResumedChoice, StreamHead


def resumable_of(headers: Mapping[str, str], body: GenerationRequest) -> Resumable:
    """Return what a request says of resuming, by its header and its body.

    Takes the field `resume` out of the body, where it would be unknown. Raises InvalidRequest.
    """
    asked = headers.get(protocol.HEADER)
    if asked is None:
        return Resumable()
    if asked != "1":
        raise InvalidRequest("Invalid header 'X-Resumable': it must be 1.", param="X-Resumable")
    value = (body.model_extra or {}).pop(protocol.FIELD, None)
    if value is None:
        return Resumable(is_asked=bool(body.stream))
    if not body.stream:
        raise InvalidRequest("Invalid 'resume': it needs 'stream': true.", param="resume")
    resume = protocol.parse_resume(value)
    if body.seed is not None and body.seed != resume.seed:
        raise InvalidRequest(
            f"Invalid 'resume.seed': the request's own seed is {body.seed}.", param="resume.seed"
        )
    return Resumable(resume, is_asked=True)


class Resumable:
    """What was received of a stream before, and the comments of the one that goes on from it.

    Owner: the request's route. Without `is_asked` there are no comments, and nothing before.
    """

    def __init__(self, resume: Resume | None = None, is_asked: bool = False) -> None:
        self._resume = resume
        self._is_asked = is_asked
        self._facts: ModelFacts | None = None
        self._choices: dict[int, ResumedChoice] = {}
        self._places: dict[int, str] = {}
        for at, choice in enumerate(resume.choices if resume is not None else []):
            place = f"resume.choices[{at}]"
            if choice.index in self._choices:
                raise InvalidRequest(
                    f"Invalid '{place}.index': {choice.index} is there twice.",
                    param=f"{place}.index",
                )
            self._choices[choice.index] = choice
            self._places[choice.index] = place
        self._head: StreamHead | None = None
        self._has_told_head = False
        self._untold: dict[int, list[int]] = {}

    def requests(
        self, requests: list[Request], facts: ModelFacts, is_deterministic: bool
    ) -> list[Request]:
        """Return a request's choices with what they have already.

        Raises Conflict where another model, or in deterministic mode anything else, made it, and
        InvalidRequest.
        """
        if not self._is_asked:
            return requests
        self._facts = facts
        if self._resume is not None:
            self._check_model(self._resume, facts, is_deterministic)
        for index, place in self._places.items():
            if index >= len(requests):
                raise InvalidRequest(
                    f"Invalid '{place}.index': the request has {len(requests)} choices.",
                    param=f"{place}.index",
                )
            _check_tokens(self._choices[index].tokens, requests[index], facts, f"{place}.tokens")
        return [self._resumed(index, request) for index, request in enumerate(requests)]

    def _check_model(self, resume: Resume, facts: ModelFacts, is_deterministic: bool) -> None:
        if resume.model_hash != facts.file_hash:
            raise _mismatch("model_hash", "another model made it")
        if is_deterministic and resume.fingerprint != facts.fingerprint:
            raise _mismatch("fingerprint", "another build, device or setting made it")

    def _resumed(self, index: int, request: Request) -> Request:
        request = dataclasses.replace(request, is_resumable=True)
        if self._resume is None:
            return request
        sampling = msgspec.structs.replace(request.sampling, seed=self._resume.seed)
        choice = self._choices.get(index, ResumedChoice(index=index))
        return dataclasses.replace(
            request, sampling=sampling, resume=list(choice.tokens), ended=choice.finish_reason
        )

    def begin(self, head: Json, prompts: list[Generation]) -> None:
        """Take the head of the answer's chunks, when each prompt's first choice has started.

        A stream that goes on keeps its id and time. Raises Conflict where it had other prompts.
        """
        if self._facts is None:
            return
        digest = hashlib.sha256("".join(prompt.prompt_hash for prompt in prompts).encode())
        prompt_hash = digest.hexdigest()
        if self._resume is not None:
            if self._resume.prompt_hash != prompt_hash:
                raise _mismatch("prompt_hash", "its prompt has other tokens")
            head.update(id=self._resume.id, created=self._resume.created)
        self._head = StreamHead(
            id=head["id"],
            created=head["created"],
            seed=prompts[0].request.sampling.seed,
            fingerprint=self._facts.fingerprint,
            model_hash=self._facts.file_hash,
            prompt_hash=prompt_hash,
        )

    # -- what has been sent before ----------------------------------------------------------------

    def has_begun(self, index: int) -> bool:
        """Whether a choice's first event was sent before."""
        return index in self._choices

    def has_ended(self, index: int) -> bool:
        """Whether a choice's last event was sent before."""
        return index in self._choices and self._choices[index].ended

    @property
    def has_usage(self) -> bool:
        """Whether the event with the usage was sent before."""
        return self._resume is not None and self._resume.usage

    # -- comments ---------------------------------------------------------------------------------

    def note(self, index: int, delta: Delta) -> None:
        """Take note of tokens; the choice's next comment tells them."""
        if self._is_asked:
            self._untold.setdefault(index, []).extend(delta.tokens)

    def comment(self, index: int, finish_reason: str | None = None, ended: bool = False) -> bytes:
        """Return the lines before a choice's next event."""
        if not self._is_asked:
            return b""
        tokens = self._untold.pop(index, [])
        return self._first() + protocol.choice_comment(index, tokens, finish_reason, ended)

    def usage_comment(self) -> bytes:
        """Return the lines before the event with the usage."""
        return self._first() + protocol.usage_comment() if self._is_asked else b""

    def _first(self) -> bytes:
        assert self._head is not None
        if self._has_told_head:
            return b""
        self._has_told_head = True
        return protocol.head_comment(self._head)


def _check_tokens(tokens: list[int], request: Request, facts: ModelFacts, place: str) -> None:
    if request.max_tokens is not None and len(tokens) > request.max_tokens:
        raise InvalidRequest(
            f"Invalid '{place}': {len(tokens)} are more than the request's {request.max_tokens}.",
            param=place,
        )
    for at, token in enumerate(tokens):
        if token >= facts.n_vocab:
            raise InvalidRequest(
                f"Invalid '{place}[{at}]': {token} is not a token id below {facts.n_vocab}.",
                param=f"{place}[{at}]",
            )


def _mismatch(field: str, why: str) -> Conflict:
    return Conflict(f"The stream cannot be resumed here: {why}.", param=f"resume.{field}")
