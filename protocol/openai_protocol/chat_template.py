"""The model's own chat template over a request's messages, with errors for its client."""

from __future__ import annotations

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.message_template import MessageTemplate, TemplateError, TemplateRefusal
from openai_protocol.plain_messages import plain
from openai_protocol.requests import Message


class ChatTemplate:
    """Turns messages into a prompt, in this process and without limits; owner: the model."""

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        """Compile a template; raises ValueError when it is not one."""
        self._template = MessageTemplate(source, bos_token, eos_token)

    def render(self, messages: list[Message]) -> str:
        """Return the prompt that makes the model answer as the assistant.

        Raises InvalidRequest for what the template refuses, or what is not text.
        """
        try:
            return self._template.render(plain(messages))
        except TemplateRefusal as error:
            raise template_refused(str(error)) from None
        except TemplateError:
            raise template_failed() from None


def template_refused(reason: str) -> InvalidRequest:
    """Return the error for messages that a template refuses in its own words."""
    return InvalidRequest(
        f"The model's chat template refuses these messages: {reason}",
        param="messages",
        code=ErrorCode.CHAT_TEMPLATE_FAILED,
    )


def template_failed(why: str = "") -> InvalidRequest:
    """Return the error for messages over which a template fails; `why` may say more."""
    return InvalidRequest(
        f"The model's chat template cannot render these messages{why and ': '}{why}.",
        param="messages",
        code=ErrorCode.CHAT_TEMPLATE_FAILED,
    )
