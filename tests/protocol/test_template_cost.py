"""Which templates are plain: those whose cost is bounded by their messages."""

from __future__ import annotations

import pytest

from openai_protocol.message_template import environment
from openai_protocol.template_cost import is_plain

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|head|>' + message['role'] + '\n\n' + message['content'] | trim %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages[1:] %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' if message.role == 'user' "
    "else message.content ~ eos_token }}{% endfor %}"
)


def judged(source: str) -> bool:
    return is_plain(source, environment().parse(source))


ELEMENTS = (
    "{% if messages is defined and messages | length > 1 %}{{ messages[-1].content }}{% endif %}"
)


@pytest.mark.parametrize("source", ["", "hi", CHATML, LLAMA, MISTRAL, ELEMENTS])
def test_usual_templates_are_plain(source: str) -> None:
    """Loops over messages, conditions and texts side by side: most small models have no more."""
    assert judged(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(9) %}x{% endfor %}",
        "{% for a in messages %}{% for b in messages %}x{% endfor %}{% endfor %}",
        "{% for c in messages[0].content %}{{ messages[0].content }}{% endfor %}",
        "{% set c = messages[0].content %}{% for i in c %}x{% endfor %}",
        "{% set l = 'x' %}{% if a %}{% set l = messages %}{% endif %}{% for i in l %}{% endfor %}",
        "{% set messages = 'x' %}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ 'x' * 9 }}",
        "{{ 9 ** 9 }}",
        "{{ '%9999999d' % 1 }}",
        "{{ messages[0].content % 2 }}",
        "{% set a = 'x' + 'y' %}{% set a = a + a %}",
        "{% set a = 'x' ~ 'y' %}{% set b = a %}{% set a = a ~ b %}",
        "{{ 'x'.center(9) }}",
        "{{ 'x'.replace('x', 'y') }}",
        "{{ 'x' | center(9) }}",
        "{{ 'x' | indent(9) }}",
        "{{ messages | tojson }}",
        "{{ messages[0].content[messages | length] }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(a='x') %}",
        "{{ lipsum(9) }}",
        "{% set a %}x{% endset %}",
        "{% filter upper %}x{% endfilter %}",
        "x" * 40_000,
        "{% for m in messages %}{% if messages ~ '' == 'x' %}{% endif %}{% endfor %}",
        "{% for m in messages %}{% if messages[1:] == messages %}{% endif %}{% endfor %}",
        "{% set l = messages %}{% for m in messages %}{{ l }}{% endfor %}",
        "{% set l = messages or 'x' %}",
        "{% for m in messages %}{% if m ~" + "m ~" * 150 + "'' %}{% endif %}{% endfor %}",
    ],
)
def test_what_may_cost_more_is_not(source: str) -> None:
    """Whatever could loop for long, or make a text grow but by adding, is not plain."""
    assert not judged(source)
