"""Prompts that the operator names: how they are read, and how requests begin that have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_llamacpp.errors import ConfigurationError
from kserve_llamacpp.shared_prompts import (
    MAX_BYTES,
    MAX_PROMPTS,
    NamedPrompt,
    PromptSharing,
    Render,
    read_shared_prompts,
    shared_texts,
)
from kserve_llamacpp.wire.frames import SharedText
from openai_protocol.chat_template import ChatTemplate
from openai_protocol.errors import ApiError, RateLimited, Unavailable
from openai_protocol.requests import Message
from tests.predictor.fake_process import settle

CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}<|assistant|>"
NO_SYSTEM_ROLE = (
    "<s>{% set system = '' %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set system = m.content | trim + '\n\n' %}{{ '<|user|>' + system }}{% else %}"
    "{{ m.content }}{% endif %}{% endfor %}"
)
IN_THE_LAST_TURN = "{{ messages[-1].content }} {{ messages[0].content }}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
IGNORES = "{{ messages[-1].content }}"
KIND = NamedPrompt("kind.txt", "You are kind.")


def _render(source: str) -> Render:
    template = ChatTemplate(source, "<s>", "</s>")

    async def render(messages: list[Message]) -> str:
        return template.render(messages)

    return render


def test_no_prompt_is_shared_unless_one_is_named() -> None:
    """Without the flag there are none."""
    assert read_shared_prompts(None) == ()


def test_a_file_is_a_prompt(tmp_path: Path) -> None:
    """A file is one prompt, line ends inside it included, those at its end not."""
    file = tmp_path / "kind.txt"
    file.write_text("You are kind.\nÄußerst.\r\n\n", encoding="utf-8")

    assert read_shared_prompts(str(file)) == (NamedPrompt("kind.txt", "You are kind.\nÄußerst."),)


def test_a_folder_has_a_prompt_in_each_file(tmp_path: Path) -> None:
    """A mounted ConfigMap is read as the kubelet makes it: links to a hidden folder."""
    (tmp_path / "..data").mkdir()
    for name in ("b", "a"):
        (tmp_path / "..data" / name).write_text(f"prompt {name}")
        (tmp_path / name).symlink_to(tmp_path / "..data" / name)

    prompts = read_shared_prompts(str(tmp_path))

    assert prompts == (NamedPrompt("a", "prompt a"), NamedPrompt("b", "prompt b"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "there is no file in the folder"),
        ({"empty.txt": b" \n"}, "empty.txt has no text"),
        ({"latin.txt": b"\xe4"}, "in UTF-8"),
        ({"long.txt": b"a" * (MAX_BYTES + 1)}, f"at most {MAX_PROMPTS} of {MAX_BYTES} bytes"),
        ({str(n): b"a" for n in range(MAX_PROMPTS + 1)}, f"has {MAX_PROMPTS + 1} prompts"),
    ],
)
def test_prompts_that_cannot_be_shared_stop_the_start(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    """What is no prompt, or too much, is told with the flag's name and what to do."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigurationError, match="--shared_prompts") as caught:
        read_shared_prompts(str(tmp_path))

    assert words in str(caught.value)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """A wrong path is told."""
    with pytest.raises(ConfigurationError, match=r"--shared_prompts: cannot read .*missing"):
        read_shared_prompts(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("source", "beginning"),
    [
        (CHATML, SharedText("<|system|>You are kind.", True)),
        (NO_SYSTEM_ROLE, SharedText("<s><|user|>You are kind.", False)),
        (IN_THE_LAST_TURN, None),
        (REFUSES, None),
        (IGNORES, None),
    ],
)
async def test_conversations_share_what_begins_with_the_prompt(
    source: str, beginning: SharedText | None
) -> None:
    """A conversation's shared beginning ends with the prompt, whatever comes behind it.

    Where the template puts it elsewhere, or nowhere, only a bare text shares it.
    """
    texts = await shared_texts([KIND], _render(source), "<s>")

    bare = SharedText("You are kind.", True)
    assert texts == ([bare] if beginning is None else [bare, beginning])


class _Engines:
    """Keeps what engines were told, and what time it is."""

    def __init__(self, prompts: list[NamedPrompt]) -> None:
        self.told: list[list[SharedText]] = []
        self.now = 0.0
        self.day = "Monday"
        self.refusals: list[ApiError] = []
        self.pauses: list[float] = []
        self.sharing = PromptSharing(
            prompts, self._render, self.told.append, lambda: self.now, self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def _render(self, messages: list[Message]) -> str:
        if self.refusals:
            raise self.refusals.pop()
        return f"{self.day}: {messages[0].content} {messages[1].content}"

    async def ready(self, has_date: bool) -> None:
        """Start an engine."""
        self.sharing.engine_ready("", has_date)
        await settle()


async def test_each_engine_is_told() -> None:
    """An engine that takes the place of another one is told, too."""
    engines = _Engines([KIND])
    await engines.ready(has_date=False)
    await engines.ready(has_date=False)

    assert len(engines.told) == 2
    assert engines.told[0] == engines.told[1]


@pytest.mark.parametrize("refusal", [Unavailable("still compiled"), RateLimited("others wait")])
async def test_a_template_that_takes_its_time_is_asked_again(refusal: ApiError) -> None:
    """While the template is compiled, or busy, the prompts wait for it; they are not left out."""
    engines = _Engines([KIND])
    engines.refusals = [refusal, refusal]
    await engines.ready(has_date=False)

    assert [len(told) for told in engines.told] == [2]
    assert len(engines.pauses) == 2


async def test_a_new_day_is_told() -> None:
    """Where the template writes the date, the engine is told when it changes, and only then."""
    engines = _Engines([KIND])
    await engines.ready(has_date=True)
    for engines.now, engines.day in [(30, "Tuesday"), (60, "Monday"), (120, "Tuesday")]:
        engines.sharing.refresh()
        await settle()

    assert [told[1].text for told in engines.told] == [
        "Monday: You are kind.",
        "Tuesday: You are kind.",
    ]


async def test_a_template_without_a_date_is_rendered_once() -> None:
    """Nothing is rendered again where the time changes nothing."""
    engines = _Engines([KIND])
    await engines.ready(has_date=False)
    engines.now, engines.day = 1e6, "Tuesday"
    engines.sharing.refresh()
    await settle()

    assert len(engines.told) == 1


async def test_without_prompts_no_engine_is_told_anything() -> None:
    """Where nothing is named, nothing is rendered or told."""
    engines = _Engines([])
    await engines.ready(has_date=True)
    engines.now = 1e6
    engines.sharing.refresh()
    await engines.sharing.stop()

    assert engines.told == []
