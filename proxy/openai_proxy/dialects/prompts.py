"""The prompts of a request, for upstreams that complete texts: several at once, or one."""

from __future__ import annotations

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, Message
from openai_proxy.dialects.asked import asked_of
from openai_proxy.dialects.base import Call, NotRendered, Render

# One request may ask for this many texts: `n` and several prompts multiply.
MAX_TEXTS = 128
# What is sent to an upstream that takes each choice as a prompt of its own.
MAX_COPIED_BYTES = 16 * 1024 * 1024


def rendered_apart(_: list[Message]) -> str:
    """Stand for a template: raises NotRendered, and whoever asked renders the chat elsewhere."""
    raise NotRendered


def prompts_of(call: Call, render: Render | None) -> list[str | list[int]]:
    """Return the prompts, each as text or as token ids; raises InvalidRequest as `render` does."""
    asked = call.asked
    if isinstance(asked, CompletionRequest):
        return asked.prompts()
    assert isinstance(asked, ChatCompletionRequest)
    if call.prompt is not None:
        return [call.prompt]
    if render is None:
        raise InvalidRequest(
            "This model's server only completes text, and no chat template is configured for it: "
            "set `chat_template` of its upstream, or use /v1/completions.",
            param="messages",
            code=ErrorCode.NO_CHAT_TEMPLATE,
        )
    return [render(asked.messages)]


def texts_of(call: Call, render: Render | None) -> list[str]:
    """Return the text of each prompt; a chat is rendered to one.

    Raises InvalidRequest for a chat that nothing renders, and for token ids.
    """
    texts = []
    for prompt in prompts_of(call, render):
        if not isinstance(prompt, str):
            raise _unsupported("This model takes prompts as text, not as token ids.")
        texts.append(prompt)
    return texts


def prompt_of(call: Call, render: Render | None) -> str:
    """Return the text that is to be completed, for an upstream that takes one.

    Raises InvalidRequest as `texts_of` does, and for several prompts and no text.
    """
    if isinstance(call.asked, CompletionRequest) and len(call.asked.prompts()) > 1:
        raise _unsupported("This model takes one prompt in a request.")
    (text,) = texts_of(call, render)
    if not text:
        raise InvalidRequest(
            "'prompt' is empty: send at least one character.",
            param="prompt",
            code=ErrorCode.EMPTY_PROMPT,
        )
    return text


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


def refuse_many_copies(call: Call) -> None:
    """Raise InvalidRequest where the copies of a request's prompts would be too much.

    It is for upstreams that take a prompt once for each of its choices.
    """
    num_choices = asked_of(call).num_choices
    if num_choices > 1 and num_choices * len(call.body) > MAX_COPIED_BYTES:
        raise InvalidRequest(
            f"Invalid 'n': this model's server takes a prompt once for each choice, and "
            f"{num_choices} times {len(call.body)} bytes are more than {MAX_COPIED_BYTES}.",
            param="n",
        )


def _unsupported(text: str) -> InvalidRequest:
    return InvalidRequest(text, param="prompt", code=ErrorCode.UNSUPPORTED_VALUE)
