"""The model's chat template: loaded beside the requests, and no reason not to serve the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
import structlog

from chat_rendering.process import Template
from chat_rendering.renderer import Renderer, TemplateInvalid
from kserve_llamacpp.model_template import ModelTemplate
from openai_protocol.errors import InvalidRequest, Unavailable
from openai_protocol.requests import Message
from tests.predictor.fake_process import FACTS

HI = [Message(role="user", content="hi")]


class FakeRenderer(Renderer):
    """A renderer whose load the test ends."""

    def __init__(self, template: Template) -> None:
        super().__init__(template)
        self.template = template
        self.loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_closed = False

    async def load(self) -> None:
        await self.loaded

    async def render(self, messages: list[Message], tenant: str = "") -> str:
        return f"{self.template.source} {messages[0].content}"

    async def close(self) -> None:
        self.is_closed = True


class Run:
    """A model's template, and the renderers that were made for it."""

    def __init__(self, source: str | None = None, wait_seconds: float = 15.0) -> None:
        self.made: list[FakeRenderer] = []
        self.template = ModelTemplate("m", source, self._make, wait_seconds)

    def _make(self, template: Template) -> FakeRenderer:
        self.made.append(FakeRenderer(template))
        return self.made[-1]

    async def take(self, chat_template: str | None) -> None:
        self.template.take(msgspec.structs.replace(FACTS, chat_template=chat_template))
        for _ in range(9):
            await asyncio.sleep(0)


@pytest.fixture
async def run() -> AsyncIterator[Callable[..., Run]]:
    """Makes runs, and ends them."""
    runs: list[Run] = []

    def make(source: str | None = None) -> Run:
        runs.append(Run(source))
        return runs[-1]

    yield make
    for one in runs:
        await one.template.stop()


async def refusal(run: Run) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await run.template.render(HI)
    return caught.value


async def test_a_chat_waits_for_the_template(run: Callable[..., Run]) -> None:
    """A chat that comes while the template is compiled is rendered afterwards."""
    one = run()
    await one.take("model's")
    chat = asyncio.create_task(one.template.render(HI))
    await asyncio.sleep(0)
    assert not chat.done()

    one.made[0].loaded.set_result(None)

    assert await chat == "model's hi"


async def test_a_chat_does_not_wait_for_ever() -> None:
    """While a template takes its time, a chat gets 503 and when to come again."""
    one = Run(wait_seconds=0.01)
    await one.take("slow")

    with pytest.raises(Unavailable) as caught:
        await one.template.render(HI)

    assert caught.value.retry_after_seconds == 5
    await one.template.stop()


async def test_a_chat_whose_template_is_replaced_may_come_again(run: Callable[..., Run]) -> None:
    """A chat that waits for a template that another one takes the place of is told so."""
    one = run()
    await one.take("a")
    chat = asyncio.create_task(one.template.render(HI))
    await asyncio.sleep(0)
    await one.take("b")

    with pytest.raises(Unavailable):
        await chat


async def test_who_waits_for_the_end_of_all_chats_waits_for_those_that_are_rendered(
    run: Callable[..., Run],
) -> None:
    """A server that drains does not end while a chat's prompt is still to come."""
    one = run()
    await one.template.idle()  # nothing is rendered
    await one.take("model's")
    chat = asyncio.create_task(one.template.render(HI))
    await asyncio.sleep(0)
    idle = asyncio.create_task(one.template.idle())
    await asyncio.sleep(0)
    assert not idle.done()

    one.made[0].loaded.set_result(None)
    await idle

    assert chat.done()


async def test_a_template_of_the_flag_wins(run: Callable[..., Run]) -> None:
    """A template that the operator names is used instead of the model's own."""
    one = run("flag's")
    await one.take("model's")
    one.made[0].loaded.set_result(None)

    assert await one.template.render(HI) == "flag's hi"


@pytest.mark.parametrize("has_one", [True, False])
async def test_without_a_usable_template_there_are_no_chats(
    run: Callable[..., Run], has_one: bool
) -> None:
    """A template that cannot be compiled in time is logged; chats are told what to use instead."""
    one = run()
    with structlog.testing.capture_logs() as logs:
        await one.take("bad" if has_one else None)
        if has_one:
            one.made[0].loaded.set_exception(TemplateInvalid("it takes for ever"))
        error = await refusal(one)

    assert (error.code, error.param) == ("no_chat_template", "messages")
    assert "/v1/completions" in error.message
    event = "chat_template_invalid" if has_one else "chat_template_missing"
    assert [entry["event"] for entry in logs] == [event]


async def test_an_engine_that_came_back_brings_the_same_template(run: Callable[..., Run]) -> None:
    """After an engine's restart the template is not compiled again; another one is."""
    one = run()
    await one.take("a")
    await one.take("a")
    assert len(one.made) == 1

    await one.take("b")

    assert [renderer.template.source for renderer in one.made] == ["a", "b"]
    assert one.made[0].is_closed


async def test_the_end_does_not_wait_for_a_template(run: Callable[..., Run]) -> None:
    """A template that compiles for ever does not keep the server from its end."""
    one = run()
    await one.take("a")

    await asyncio.wait_for(one.template.stop(), 1)

    assert one.made[0].is_closed
