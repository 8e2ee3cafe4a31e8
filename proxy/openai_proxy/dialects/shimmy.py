"""The `shimmy` dialect: its OpenAI-like chat, or its own `/api/generate`.

Both stream unless told not to. The chat's chunks have null roles and contents; before 2.6 its
finish reason is always "stop", its prompt tokens always 0. `/api/generate` streams raw text as
events' data, then `[DONE]`; what fails in between is `[ERROR] ...` under status 200. Errors have
empty bodies.
"""

from __future__ import annotations

from typing import Literal, get_args

from openai_protocol.errors import ApiError
from openai_protocol.plain_messages import plain
from openai_protocol.requests import ChatCompletionRequest, GenerationRequest
from openai_protocol.sse import DONE_PAYLOAD, MEDIA_TYPE
from openai_proxy.dialects.asked import asked_of, model_of, posted
from openai_proxy.dialects.base import (
    CHAT,
    GENERATING,
    AnswerHead,
    Call,
    Json,
    Render,
    UpstreamRequest,
)
from openai_proxy.dialects.fields import count_in, json_value, names_in, object_in, text_in
from openai_proxy.dialects.form import Choice, ChunkWriter, completion, usage_of
from openai_proxy.dialects.openai import broken_stream, invalid_response
from openai_proxy.dialects.parameters import Unsupported, checked
from openai_proxy.dialects.prompts import prompt_of
from openai_proxy.dialects.reading import Events, TranslatedStream, json_piece
from openai_proxy.dialects.upstream_errors import answered, failed, unknown_model, upstream_error
from openai_proxy.dialects.withheld import CutText

Path = Literal["/v1/chat-completion", "/v1/chat/completions", "/api/generate"]
PATHS = get_args(Path)
GENERATE: Path = "/api/generate"
_BOTH = frozenset({"temperature", "top_p", "max_tokens", "max_completion_tokens"})
SUPPORTED_CHAT = _BOTH | {"stop", "presence_penalty", "frequency_penalty"}
SUPPORTED_GENERATE = _BOTH | {"top_k"}
_ERROR = b"[ERROR]"


class ShimmyDialect:
    """Speaks to shimmy: chats go to `path`, text completions always to `/api/generate`.

    A server that has `/v1/chat-completion` is none of shimmy's releases: it serves chats alone.
    """

    base_path = ""
    stream_types = frozenset({MEDIA_TYPE})
    models_path = "/v1/models"

    def __init__(
        self,
        path: Path = "/v1/chat/completions",
        unsupported: Unsupported = "refuse",
        render: Render | None = None,
    ) -> None:
        """Raises ValueError for another path, and for a template: shimmy renders chats itself."""
        if path not in PATHS:
            raise ValueError(f"its option path must be one of {', '.join(PATHS)}")
        if render is not None:
            raise ValueError("shimmy renders chats itself: leave the chat template out")
        chat_only = path == "/v1/chat-completion"
        self.endpoints = frozenset({CHAT}) if chat_only else GENERATING
        self._path = path
        self._unsupported = unsupported

    def request(self, call: Call) -> UpstreamRequest:
        """Translate a call; raises InvalidRequest."""
        asked = asked_of(call)
        body: Json = {"model": model_of(call), "stream": call.is_stream}
        if isinstance(asked, ChatCompletionRequest):
            body["messages"] = plain(asked.messages)
            if asked.include_usage and self._path != GENERATE:
                body["stream_options"] = {"include_usage": True}
        else:
            # Without it the prompt becomes a user's message in the model's chat template.
            body |= {"prompt": prompt_of(call, None), "raw_prompt": True}
        path = self._path_of(call)
        return posted(call, path, body | self._parameters(asked, path))

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole answer; raises BadGateway where it is none."""
        value = answered(json_value(body))
        if self._path_of(call) == GENERATE:
            if not isinstance(value.get("response"), str):
                raise invalid_response()
            reason = _finish_reason(value) or "stop"
            return completion(call, [Choice(value["response"], reason)], _usage(value))
        choice = _first_choice(value)
        if choice is None or not isinstance(choice.get("message"), dict):
            raise invalid_response()
        cut = CutText(asked_of(call).stop_strings())
        text = cut.add(text_in(choice["message"], "content")) + cut.rest()
        reason = "stop" if cut.is_cut else _finish_reason(choice) or "stop"
        return completion(call, [Choice(text, reason)], _usage(value))

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status: 404 is an unknown model, 502 a failed one."""
        error = upstream_error(head, body)
        if error.status != 404:
            return error
        if body.strip():
            return unknown_model(error.message)
        return unknown_model(
            "The upstream does not have this model, or not the path that its requests are sent to."
        )

    def stream(self, call: Call) -> TranslatedStream:
        """Return a parser for one stream."""
        return RawTextStream(call) if self._path_of(call) == GENERATE else ChunkStream(call)

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the models of OpenAI's list, or of shimmy's own (`/api/models`, `/api/tags`)."""
        return names_in(body, ("data", "id"), ("models", "name"))

    def _path_of(self, call: Call) -> Path:
        return self._path if call.path == CHAT else GENERATE

    def _parameters(self, asked: GenerationRequest, path: Path) -> Json:
        supported = SUPPORTED_GENERATE if path == GENERATE else SUPPORTED_CHAT
        values = checked(asked, supported, self._unsupported)
        values.pop("max_completion_tokens", None)
        if asked.token_limit is not None:
            values["max_tokens"] = asked.token_limit
        return values


class RawTextStream(TranslatedStream):
    """Translates a stream of `/api/generate`: each event is text, unless it is a mark."""

    def __init__(self, call: Call) -> None:
        super().__init__(Events())
        self._writer = ChunkWriter(call)

    def _take(self, piece: bytes) -> bytes:
        if piece == DONE_PAYLOAD:
            self._is_complete = True
            return self._writer.finish("stop") + self._writer.end()
        if is_error(piece):
            raise failed()
        try:
            return self._writer.text(piece.decode())
        except UnicodeDecodeError:
            raise broken_stream() from None


class ChunkStream(TranslatedStream):
    """Translates a stream of the OpenAI-like chat: without its nulls, with the client's model.

    It ends at a stop string, of which shimmy sees only those that are one token.
    """

    def __init__(self, call: Call) -> None:
        super().__init__(Events())
        self._writer = ChunkWriter(call)
        self._finish_reason: str | None = None
        self._usage: Json | None = None
        self._cut = CutText(asked_of(call).stop_strings())

    def _take(self, piece: bytes) -> bytes:
        if piece.strip() == DONE_PAYLOAD:
            return self._cut_off()
        if is_error(piece):
            raise failed()
        value = json_piece(piece)
        if value.get("error"):
            raise failed()
        self._usage = _usage(value) or self._usage
        choice = _first_choice(value)
        if choice is None or self._finish_reason is not None:
            return b""  # it sends {} for a chunk that it could not write
        self._finish_reason = _finish_reason(choice)
        text = self._writer.text(self._cut.add(text_in(object_in(choice, "delta"), "content")))
        if not self._cut.is_cut:
            return text
        self._finish_reason = "stop"
        return text + self._cut_off()

    def _cut_off(self) -> bytes:
        # Where the finish reason came, nothing is missing but perhaps the mark.
        if self._finish_reason is None:
            raise broken_stream()
        self._is_complete = True
        rest = self._writer.text(self._cut.rest())
        return rest + self._writer.finish(self._finish_reason) + self._writer.end(self._usage)


def is_error(piece: bytes) -> bool:
    """Tell whether an event is shimmy's word that it failed; no token begins like this."""
    return piece == _ERROR or piece.startswith(_ERROR + b" ")


def _first_choice(value: Json) -> Json | None:
    choices = value.get("choices")
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else None


def _finish_reason(choice: Json) -> str | None:
    return text_in(choice, "finish_reason") or None


def _usage(value: Json) -> Json | None:
    """Return the usage; none where it is not counted, which shimmy says with 0 prompt tokens."""
    usage = object_in(value, "usage")
    prompt, generated = count_in(usage, "prompt_tokens"), count_in(usage, "completion_tokens")
    return usage_of(prompt, generated) if prompt and generated is not None else None
