"""What a dialect is: pure functions over a call, and a stream parser; no I/O, no configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from openai_protocol.errors import ApiError
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, Message

Headers = list[tuple[str, str]]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GENERATING = frozenset({CHAT, COMPLETIONS})
# Turns messages into a prompt; raises InvalidRequest, and NotRendered where it is done apart.
Render = Callable[[list[Message]], str]


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request of one of our clients, and what its answer is built from.

    `path` as the client sees it (`/v1/...`); `body` as it is to be sent where bytes can pass, with
    `upstream_model` in it; `asked` is the same, parsed: None for endpoints that only pass.
    `prompt` is the chat's, once it was rendered. `model` goes into the answer, `upstream_model` to
    the upstream; `created` in Unix seconds.
    """

    path: str
    body: bytes
    asked: ChatCompletionRequest | CompletionRequest | None = None
    headers: Headers = field(default_factory=list)
    model: str | None = None
    upstream_model: str | None = None
    answer_id: str = ""
    created: int = 0
    prompt: str | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the client wants events."""
        return self.asked is not None and bool(self.asked.stream)

    def without_prompt(self) -> Call:
        """Return what an answer is built from: a call without body and texts, but their number."""
        asked = None if self.asked is None else _emptied(self.asked)
        return replace(self, body=b"", asked=asked, prompt=None)


def _emptied(
    asked: ChatCompletionRequest | CompletionRequest,
) -> ChatCompletionRequest | CompletionRequest:
    texts: Json = {"messages": []}
    if isinstance(asked, CompletionRequest):
        texts = {"prompt": [""] * len(asked.prompts())}
    emptied = asked.model_copy(update=texts)
    # Of what upstreams alone know only flags and numbers are kept: the rest may be long.
    extra = emptied.__pydantic_extra__ or {}
    kept = {name: value for name, value in extra.items() if isinstance(value, (bool, int, float))}
    object.__setattr__(emptied, "__pydantic_extra__", kept)
    return emptied


class NotRendered(Exception):
    """A call needs its chat's prompt: it is to be translated again, with it."""


class UpstreamRequest(NamedTuple):
    """What is sent to an upstream; `path` is below its base URL.

    `is_at_root`: below that URL without its /v1.
    """

    path: str
    headers: Headers
    body: bytes
    is_at_root: bool = False


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class AnswerHead(NamedTuple):
    """The head of an upstream's answer; media type, encoding and headers' names in lower case."""

    status: int
    media_type: str
    encoding: str = ""
    retry_after: str | None = None
    headers: Mapping[str, str] = _NO_HEADERS


class PassedError(ApiError):
    """An upstream's own error that already has OpenAI's form: its body passes as it is."""

    def __init__(self, status: int, code: str, raw: bytes) -> None:
        super().__init__("the upstream refused the request", status=status, code=code)
        self._raw = raw

    def body(self) -> bytes:
        """Return the upstream's body."""
        return self._raw


class StreamParser(Protocol):
    """Turns an upstream's stream into OpenAI's events; one for each stream."""

    @property
    def is_complete(self) -> bool:
        """Whether the stream is over, well or not; nothing that follows belongs to it."""

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes as they come, return whole events to forward (maybe none)."""

    def finish(self) -> bytes:
        """Tell that no more is fed; return the events that were still to come.

        Raises BadGateway (`upstream_stream_broken`) for a bad end.
        """


class Dialect(Protocol):
    """How one kind of upstream speaks.

    `base_path` is meant where an upstream's URL has no path. `endpoints` are the paths, as our
    clients see them, that such an upstream can serve. `stream_types` are the media types of answers
    that `stream` reads; one that has no streams may have its whole answers' type there.
    """

    base_path: str
    endpoints: frozenset[str]
    stream_types: frozenset[str]
    models_path: str  # below the base URL: what is asked to see whether it is ready

    def request(self, call: Call) -> UpstreamRequest:
        """Translate a call; raises InvalidRequest for what such an upstream cannot do.

        Raises NotRendered for a chat without a prompt, where the upstream takes prompts alone.
        """

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole successful answer; raises BadGateway where it is none."""

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status."""

    def stream(self, call: Call) -> StreamParser:
        """Return a parser for one stream."""

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the models that the answer to `models_path` names.

        None where it cannot be understood. Empty: none is ready; raise nothing.
        """


Json = dict[str, Any]
