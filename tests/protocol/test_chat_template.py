"""The model's own chat template: what it is given, and what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest

from openai_protocol.chat_template import ChatTemplate
from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import Message

# Phi-3's, as it stands in the model's file
PHI_3 = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""  # noqa: E501 - its own line

# Mistral's first one
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""  # noqa: E501 - its own line


def _render(source: str, *messages: dict[str, Any]) -> str:
    template = ChatTemplate(source, "<s>", "</s>")
    given = messages or ({"role": "user", "content": "hi"},)
    return template.render([Message(**message) for message in given])


def _refusal(source: str, *messages: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        _render(source, *messages)
    assert caught.value.status == 400
    return caught.value


def test_phi_3_is_rendered_as_its_authors_do() -> None:
    """A conversation becomes Phi-3's prompt, open for the assistant's next turn."""
    prompt = _render(
        PHI_3,
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who?"},
    )

    assert prompt == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
        "<|user|>\nWho?<|end|>\n<|assistant|>\n"
    )


def test_mistral_is_rendered_with_its_special_tokens() -> None:
    """The template has the model's first and last tokens as texts."""
    prompt = _render(
        MISTRAL,
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who?"},
    )

    assert prompt == "<s>[INST] Hi [/INST]Hello</s>[INST] Who? [/INST]"


def test_what_a_template_refuses_is_told_in_its_words() -> None:
    """`raise_exception` is the client's mistake: a 400 with the template's own text."""
    error = _refusal(MISTRAL, {"role": "assistant", "content": "Hello"})

    assert (error.code, error.param) == ("chat_template_failed", "messages")
    assert error.message == (
        "The model's chat template refuses these messages: "
        "Conversation roles must alternate user/assistant/user/assistant/..."
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__.json }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% include '/etc/passwd' %}",
        "{{ nobody.content }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    """Whatever a stranger's template tries or does wrong, the request fails and nothing else."""
    error = _refusal(source)

    assert (error.code, error.param) == ("chat_template_failed", "messages")
    assert error.message == "The model's chat template cannot render these messages."


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ unclosed", "{% unknown_tag %}", "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}"],
)
def test_what_is_no_template_is_told_when_it_is_made(source: str) -> None:
    """A template that cannot be compiled is found when the model is loaded."""
    with pytest.raises(ValueError, match="cannot be compiled"):
        ChatTemplate(source, "<s>", "</s>")


def test_a_developers_message_is_a_systems() -> None:
    """Templates know no role `developer`: they see OpenAI's older name for it."""
    prompt = _render("{{ messages[0].role }}", {"role": "developer", "content": "x"})

    assert prompt == "system"


def test_parts_of_text_are_one_text() -> None:
    """Content in parts is joined, for most templates take a text."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert _render("{{ messages[0].content }}", {"role": "user", "content": parts}) == "ab"


@pytest.mark.parametrize(
    ("part", "code", "param"),
    [
        (
            {"type": "image_url", "image_url": {"url": "x"}},
            "unsupported_value",
            "messages[1].content[1].type",
        ),
        ({"type": "text"}, "missing_required_parameter", "messages[1].content[1].text"),
    ],
)
def test_a_part_that_is_no_text_is_refused_by_its_place(
    part: dict[str, Any], code: str, param: str
) -> None:
    """An image, or a part without its text, is refused with the place where it stands."""
    content = [{"type": "text", "text": "a"}, part]

    error = _refusal(
        PHI_3, {"role": "system", "content": "s"}, {"role": "user", "content": content}
    )

    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "5", "tool_call_id": "1"},
        {"role": "function", "name": "f", "content": "5"},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
    ],
)
def test_tool_calls_are_refused_rather_than_dropped(message: dict[str, Any]) -> None:
    """A conversation with tool calls is refused: a prompt without them would mislead the model."""
    error = _refusal(PHI_3, {"role": "user", "content": "x"}, message)

    assert (error.code, error.param) == ("unsupported_value", "messages[1]")


def test_an_assistants_message_without_content_is_empty() -> None:
    """A template may join contents without asking whether there is one."""
    prompt = _render("{{ messages[0].content + '.' }}", {"role": "assistant", "content": None})

    assert prompt == "."


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("{{ {'a': 'ü<b>'} | tojson }}", '{"a": "ü<b>"}'),
        ("{{ {'a': 'ü'} | tojson(ensure_ascii=True) }}", '{"a": "\\u00fc"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% if true %}\n  x\n{% endif %}\n", "  x\n"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{{ strftime_now('%%') }}", "%"),
        ("{{ tools is none }}{{ tools is defined }}", "TrueTrue"),
        ("{{ '<' + messages[0].content + '>' }}", "<hi>"),
    ],
)
def test_templates_find_what_they_were_written_against(source: str, prompt: str) -> None:
    """Filters, loop controls, trimmed blocks and tags are those of Hugging Face's templates."""
    assert _render(source) == prompt


def test_what_a_user_writes_is_not_a_template() -> None:
    """Template code in a message is text."""
    prompt = _render("{{ messages[0].content }}", {"role": "user", "content": "{{ 1 + 1 }}"})

    assert prompt == "{{ 1 + 1 }}"
