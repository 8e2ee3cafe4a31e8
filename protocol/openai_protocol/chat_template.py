"""The model's own chat template, rendered in a sandbox."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.plain_messages import plain
from openai_protocol.requests import Message


class ChatTemplate:
    """Turns messages into a prompt; owner: the model. Source: Hugging Face's chat templates.

    The environment is theirs (trimmed blocks, loop controls, `raise_exception`, `strftime_now`,
    `tojson` without escapes), for templates are written against it.
    """

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        """Compile a template; raises ValueError when it is not one."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._bos_token = bos_token
        self._eos_token = eos_token
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # not all are Jinja's own: it may be nested too deeply
            raise ValueError(f"the chat template cannot be compiled: {error}") from error

    def render(self, messages: list[Message]) -> str:
        """Return the prompt that makes the model answer as the assistant.

        Raises InvalidRequest for what the template refuses, or what is not text.
        """
        try:
            return self._template.render(
                messages=plain(messages),
                add_generation_prompt=True,
                bos_token=self._bos_token,
                eos_token=self._eos_token,
                tools=None,
            )
        except InvalidRequest:
            raise
        except _Refusal as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}",
                param="messages",
                code=ErrorCode.CHAT_TEMPLATE_FAILED,
            ) from None
        except Exception:  # a template is a program of strangers: whatever it raises, it failed
            raise InvalidRequest(
                "The model's chat template cannot render these messages.",
                param="messages",
                code=ErrorCode.CHAT_TEMPLATE_FAILED,
            ) from None


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks what the assistant wrote; a prompt needs no marks."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration, never changed

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refusal(Exception):
    """What a template raised by itself, in its own words."""


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(str(message)[:512])


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)  # noqa: DTZ005 - templates ask for the local date
