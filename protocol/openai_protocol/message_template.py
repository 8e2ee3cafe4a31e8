"""A chat template as Hugging Face's models bring it, rendered in a sandbox.

It imports Jinja and nothing heavier: a process that only renders starts fast and stays small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox


class TemplateError(ValueError):
    """A template that is none, or that failed over these messages."""


class TemplateRefusal(TemplateError):
    """What a template raised by itself."""


class OutputTooLong(TemplateError):
    """A prompt of more characters than it may have."""


class MessageTemplate:
    """Turns messages of a role and a text each into a prompt. Source: Hugging Face.

    The environment is theirs (trimmed blocks, loop controls, `raise_exception`, `strftime_now`,
    `tojson` without escapes), for templates are written against it. To compile a stranger's
    template may take for ever, for Jinja computes its constants then; so may to render it.
    """

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        """Compile a template; raises TemplateError when it is not one."""
        self._bos_token = bos_token
        self._eos_token = eos_token
        try:
            self._template = environment().from_string(source)
        except Exception as error:  # not all are Jinja's own: it may be nested too deeply
            raise TemplateError(f"the chat template cannot be compiled: {error}") from error

    def render(self, messages: list[dict[str, Any]], max_characters: int | None = None) -> str:
        """Return the prompt that makes the model answer as the assistant; raises TemplateError."""
        try:
            pieces = self._template.generate(
                messages=messages,
                add_generation_prompt=True,
                bos_token=self._bos_token,
                eos_token=self._eos_token,
                tools=None,
            )
            return "".join(pieces if max_characters is None else _bounded(pieces, max_characters))
        except TemplateError:
            raise
        except Exception as error:  # a template is a program of strangers: whatever it raises
            raise TemplateError("the chat template failed") from error


def environment() -> jinja2.Environment:
    """Return the environment that chat templates are written against."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _bounded(pieces: Iterator[str], max_characters: int) -> Iterator[str]:
    left = max_characters
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise OutputTooLong(f"the prompt has more than {max_characters} characters")
        yield piece


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks what the assistant wrote; a prompt needs no marks."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration, never changed

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
    raise TemplateRefusal(str(message)[:512])


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)  # noqa: DTZ005 - templates ask for the local date
