"""Chats are rendered as the template says, and no template or chat holds up the server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from chat_rendering import process as process_module
from chat_rendering import renderer as rendering
from chat_rendering.process import Late, Lost, RendererProcess, Template, memory_limit
from chat_rendering.renderer import Renderer, TemplateInvalid
from openai_protocol.chat_template import ChatTemplate
from openai_protocol.errors import ApiError, RateLimited, Unavailable
from openai_protocol.message_template import MessageTemplate
from openai_protocol.requests import Message

PLAIN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
# The same prompt, by a macro: nobody knows what macros cost.
MACRO = "{% macro all() %}" + PLAIN + "{% endmacro %}{{ all() }}"
NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def chat(*texts: str) -> list[Message]:
    return [Message(role="user", content=text) for text in texts]


@pytest.fixture
async def made() -> AsyncIterator[Callable[..., Renderer]]:
    """Makes renderers with short times, and closes them."""
    all_made: list[Renderer] = []

    def make(source: str, **limits: Any) -> Renderer:
        template = Template(
            source, "<s>", "</s>", **{"render_seconds": 0.5, "patience": 1.0, **limits}
        )
        all_made.append(Renderer(template))
        return all_made[-1]

    yield make
    for one in all_made:
        await one.close()


async def refusal(renderer: Renderer, messages: list[Message]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await renderer.render(messages)
    return caught.value


async def longest_pause(work: Any) -> float:
    """Return the longest time that the event loop stood still while something was awaited."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - began - 0.01)

    watching = asyncio.create_task(watch())
    try:
        await work
    finally:
        watching.cancel()
    return longest


@pytest.mark.parametrize("source", [PLAIN, MACRO])
@pytest.mark.parametrize("texts", [["hi", "zwölf\u2028"], ["x" * 100_000], ["é"] * 200])
async def test_a_chat_has_the_same_prompt_wherever_it_is_rendered(
    made: Callable[..., Renderer], source: str, texts: list[str]
) -> None:
    """Small or large, by a plain template or another: the prompt is that of the template."""
    renderer = made(source)
    await renderer.load()

    assert await renderer.render(chat(*texts)) == ChatTemplate(source, "<s>", "</s>").render(
        chat(*texts)
    )
    assert renderer.is_inline == (source == PLAIN)


async def test_a_template_that_never_compiles_is_given_up(made: Callable[..., Renderer]) -> None:
    """A constant that takes for ever to compute ends the load in time; the loop goes on."""
    renderer = made("{{ 'a' * 10**9 }}{{ 9**(9**8) }}", load_seconds=0.5)

    async def load() -> None:
        with pytest.raises(TemplateInvalid, match=r"longer than 0\.5 seconds to compile"):
            await renderer.load()

    assert await longest_pause(load()) < 0.3


async def test_a_template_that_is_none_says_why(made: Callable[..., Renderer]) -> None:
    """What Jinja says of a template is told."""
    with pytest.raises(TemplateInvalid, match="cannot be compiled: Expected"):
        await made("{% for %}").load()


async def test_a_chat_that_takes_too_long_is_refused(made: Callable[..., Renderer]) -> None:
    """Nested loops end at the deadline with a 400; the loop goes on, and so does the next chat."""
    renderer = made("{% if messages[0].content == 'go' %}" + NESTED + "{% endif %}ok")
    await renderer.load()

    async def render() -> None:
        error = await refusal(renderer, chat("go"))
        assert (error.status, error.code, error.param) == (400, "chat_template_failed", "messages")
        assert "longer than 0.5 seconds" in error.message

    assert await longest_pause(render()) < 0.3
    assert await renderer.render(chat("hi")) == "ok"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ messages[0].content * 10**9 }}", "too much memory"),
        ("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}", "more than 1000"),
        ("{{ raise_exception('only ' + messages[0].role) }}", "refuses these messages: only user"),
        ("{{ messages[0].content.nothing.at.all }}", "cannot render these messages."),
    ],
)
async def test_what_a_template_cannot_render_is_told(
    made: Callable[..., Renderer], source: str, says: str
) -> None:
    """Too much memory or output, a template's own words and its faults are 400 on `messages`."""
    renderer = made(source, max_characters=1000)
    await renderer.load()

    error = await refusal(renderer, chat("hi"))

    assert (error.status, error.param) == (400, "messages")
    assert says in error.message


async def test_small_chats_do_not_wait_for_large_ones(made: Callable[..., Renderer]) -> None:
    """A large chat that takes its whole time keeps nobody with a small one."""
    renderer = made("{% if messages|length > 200 %}" + NESTED + "{% endif %}ok", render_seconds=1.0)
    await renderer.load()
    slow = asyncio.create_task(refusal(renderer, chat(*["x"] * 300)))
    await asyncio.sleep(0.1)

    assert await renderer.render(chat("hi")) == "ok"
    assert not slow.done()
    assert (await slow).status == 400


async def test_a_process_that_was_killed_is_started_anew(made: Callable[..., Renderer]) -> None:
    """A chat after the process's death is rendered, in another one."""
    renderer = made(MACRO)
    await renderer.load()
    first = renderer._first.pid
    assert renderer._first._process is not None
    renderer._first._process.kill()

    assert await renderer.render(chat("hi")) == "user: hi\n"
    assert renderer._first.pid not in (None, first)


async def test_cpu_time_counts_and_not_others_work(made: Callable[..., Renderer]) -> None:
    """The kernel ends a process at its CPU time, long before more than that may have passed."""
    renderer = made(NESTED, render_seconds=0.5, patience=60.0)
    await renderer.load()
    began = time.perf_counter()

    error = await refusal(renderer, chat("hi"))

    assert "longer than 0.5 seconds" in error.message
    assert time.perf_counter() - began < 25


async def test_a_process_that_takes_long_gives_way(
    made: Callable[..., Renderer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long computation gets what others leave; what comes after it has a process of its own."""
    monkeypatch.setattr(process_module, "FAST_SECONDS", 0.05)
    renderer = made("{% if messages[0].content == 'go' %}" + NESTED + "{% endif %}ok")
    await renderer.load()
    pid = renderer._first.pid
    assert pid is not None
    slow = asyncio.create_task(refusal(renderer, chat("go")))
    await asyncio.sleep(0.2)

    assert os.getpriority(os.PRIO_PROCESS, pid) == 10
    await slow
    assert await renderer.render(chat("hi")) == "ok"


async def test_a_process_gives_the_memory_of_a_large_chat_back(
    made: Callable[..., Renderer],
) -> None:
    """After a chat of megabytes its process ends; the next one has another."""
    renderer = made(MACRO)
    await renderer.load()

    prompt = await renderer.render(chat("x" * (5 << 20)))

    assert len(prompt) > 5 << 20
    assert renderer._large._process.pid is None
    assert await renderer.render(chat("x" * (1 << 20)))


async def test_a_chat_that_does_not_fit_the_memory_is_refused(
    made: Callable[..., Renderer],
) -> None:
    """A chat that takes too much only to be read is no 503, which would be tried again."""
    renderer = made(MACRO, render_seconds=5.0, max_memory_bytes=64 << 20)
    await renderer.load()

    error = await refusal(renderer, chat("x" * (8 << 20) + "\N{GRINNING FACE}"))

    assert error.status == 400
    assert "too much memory" in error.message


def test_a_process_gets_a_quarter_of_the_memory() -> None:
    """In a small container it gets less than otherwise, but enough for a chat of megabytes."""
    most = 512 << 20

    assert memory_limit(most, None) == most
    assert memory_limit(most, 16 << 30) == most
    assert memory_limit(most, 1 << 30) == 256 << 20
    assert memory_limit(most, 200 << 20) == 128 << 20


async def test_a_template_is_compiled_later_where_no_process_can_be_had() -> None:
    """A start without a process is no reason to be without chats for good."""
    commands = iter([("/no/such/program",), process_module.COMMAND])
    template = Template(MACRO, "", "")
    first = RendererProcess(template, next(commands))
    made_processes = iter([first, RendererProcess(template)])
    renderer = Renderer(template, lambda _: next(made_processes))
    await renderer.load()
    with pytest.raises(Unavailable):
        await renderer.render(chat("hi"))

    first._command = next(commands)

    try:
        assert await renderer.render(chat("hi")) == "user: hi\n"
    finally:
        await renderer.close()


class FakeProcess(RendererProcess):
    """A process that the test plays."""

    def __init__(self, template: Template) -> None:
        super().__init__(template)
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.num_asked = 0

    async def load(self) -> Any:
        return {"is_plain": False}

    async def render(self, messages: list[dict[str, Any]]) -> Any:
        self.num_asked += 1
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        pass


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def played() -> tuple[Renderer, FakeProcess]:
    processes: list[FakeProcess] = []

    def start(template: Template) -> FakeProcess:
        processes.append(FakeProcess(template))
        return processes[-1]

    return Renderer(Template(MACRO, "", ""), start), processes[0]


async def test_no_more_chats_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat past the bound gets 429, and those that wait are rendered one after another."""
    monkeypatch.setattr(rendering, "MAX_WAITING", 2)
    renderer, process = played()
    waiting = [asyncio.create_task(renderer.render(chat("hi"))) for _ in range(3)]
    await settle()

    with pytest.raises(RateLimited):
        await renderer.render(chat("hi"))
    assert process.num_asked == 1
    for number in range(3):
        process.answers.put_nowait({"prompt": str(number)})
    assert await asyncio.gather(*waiting) == ["0", "1", "2"]


async def test_one_tenants_slow_chats_are_no_queue_for_another() -> None:
    """A chat of another tenant is next, however many chats of the first one wait."""
    renderer, process = played()
    slow = [asyncio.create_task(renderer.render(chat("hi"), "a")) for _ in range(9)]
    await settle()
    other = asyncio.create_task(renderer.render(chat("hi"), "b"))
    await settle()
    for number in range(3):
        process.answers.put_nowait({"prompt": str(number)})

    assert await other == "2"
    for task in slow:
        task.cancel()


async def test_a_chat_whose_client_left_is_not_begun() -> None:
    """Of two chats that wait, the one whose client leaves costs nothing."""
    renderer, process = played()
    first, second = (asyncio.create_task(renderer.render(chat("hi"))) for _ in range(2))
    await settle()
    second.cancel()
    process.answers.put_nowait({"prompt": "x"})

    assert await first == "x"
    assert process.num_asked == 1


async def test_chats_that_are_rendered_at_the_end_are_told_so() -> None:
    """At the end, a chat that is rendered and one that waits get 503, not a cancelled task."""
    renderer, _ = played()
    chats = [asyncio.create_task(renderer.render(chat("hi"))) for _ in range(2)]
    await settle()

    await renderer.close()

    for one in chats:
        with pytest.raises(Unavailable):
            await one


async def test_a_process_that_cannot_be_had_is_no_fault_of_the_chat() -> None:
    """Where a second process is lost as well, the client may try again later."""
    renderer, process = played()
    for _ in range(2):
        process.answers.put_nowait(Lost("no memory"))

    with pytest.raises(Unavailable):
        await renderer.render(chat("hi"))


async def test_a_late_process_is_not_asked_twice() -> None:
    """A chat that took all of its time is refused, not tried again."""
    renderer, process = played()
    process.answers.put_nowait(Late())

    assert (await refusal(renderer, chat("hi"))).status == 400
    assert process.num_asked == 1


async def test_a_plain_template_that_was_slow_is_rendered_apart() -> None:
    """After one slow chat no other one is rendered in the server's process."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    renderer = Renderer(Template(PLAIN, "", ""), clock=clock)
    await renderer.load()
    assert renderer.is_inline

    try:
        assert await renderer.render(chat("hi")) == "user: hi\n"
        assert not renderer.is_inline
        assert await renderer.render(chat("hi")) == "user: hi\n"
    finally:
        await renderer.close()


async def test_a_server_that_gets_no_processor_time_says_nothing_of_its_template() -> None:
    """A chat that stood still, as in a throttled container, does not count as slow."""

    class Throttled(MessageTemplate):
        def render(self, messages: list[dict[str, Any]], max_characters: int | None = None) -> str:
            time.sleep(2 * rendering.INLINE_SECONDS)
            return super().render(messages, max_characters)

    renderer = Renderer(Template(PLAIN, "", ""))
    renderer._inline = Throttled(PLAIN, "", "")

    assert await renderer.render(chat("hi")) == "user: hi\n"
    assert renderer.is_inline
