"""What upstreams are asked that take texts, several at once or one, of a model in their path."""

from __future__ import annotations

from urllib.parse import quote

from openai_protocol.errors import ErrorCode, InvalidRequest, model_not_found
from openai_protocol.requests import CompletionRequest
from openai_proxy.dialects.asked import asked_of, model_of, passed_headers, prompts_of
from openai_proxy.dialects.base import Call, Headers, Render

# One request may ask for this many texts: `n` and several prompts multiply.
MAX_TEXTS = 128

# They change how KServe and Triton read a body: what the client sent was another one.
_ABOUT_BODIES = ("ce-", "inference-header-")
_SAFE_IN_A_SEGMENT = "!$&'()*+,;=:@"  # RFC 3986, 3.3; servers that decode nothing find more names


def forwarded(call: Call) -> Headers:
    """Return the client's headers that are the upstream's business, and the media type of JSON."""
    return [pair for pair in passed_headers(call) if not pair[0].startswith(_ABOUT_BODIES)]


def model_segment(call: Call, usual: str | None) -> str:
    """Return the model's name as a segment of a path; `usual` where the request names none.

    Raises InvalidRequest where there is no name, NotFound for one that is no segment.
    """
    name = call.upstream_model or usual or model_of(call)
    if name in (".", ".."):
        raise model_not_found(name)
    return quoted(name)


def quoted(name: str) -> str:
    """Return a name as a segment of a path."""
    return quote(name, safe=_SAFE_IN_A_SEGMENT)


def texts_of(call: Call, render: Render | None) -> list[str]:
    """Return the text of each prompt; a chat is rendered to one.

    Raises InvalidRequest for a chat that nothing renders, and for token ids.
    """
    return [_text(prompt) for prompt in prompts_of(call, render)]


def num_texts(call: Call) -> int:
    """Return how many texts a request asks for; raises InvalidRequest for too many."""
    asked = asked_of(call)
    num_prompts = len(asked.prompts()) if isinstance(asked, CompletionRequest) else 1
    if num_prompts * asked.num_choices > MAX_TEXTS:
        raise InvalidRequest(
            f"Invalid 'n': {num_prompts} prompts with {asked.num_choices} choices each are more "
            f"than {MAX_TEXTS} texts.",
            param="n",
        )
    return num_prompts * asked.num_choices


def _text(prompt: str | list[int]) -> str:
    if not isinstance(prompt, str):
        raise InvalidRequest(
            "This model takes its prompts as text, not as token ids.",
            param="prompt",
            code=ErrorCode.UNSUPPORTED_VALUE,
        )
    return prompt


class PromptEcho:
    """Takes a repeated prompt off the start of a text that comes in pieces; owner: its stream."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._held = ""
        self._is_over = not prompt

    def pass_on(self, piece: str) -> str:
        """Return what of the text is surely no echo."""
        if self._is_over:
            return piece
        self._held += piece
        if len(self._held) < len(self._prompt) and self._prompt.startswith(self._held):
            return ""
        return self.rest()

    def rest(self) -> str:
        """Return what was held back: a text that only began as its prompt does."""
        held, self._held, self._is_over = self._held, "", True
        return held.removeprefix(self._prompt)
