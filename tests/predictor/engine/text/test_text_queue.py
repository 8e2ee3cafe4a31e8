"""Which text is tokenized next."""

from __future__ import annotations

from kserve_llamacpp.engine.text.text_queue import Text, TextQueue
from tests.predictor.engine.text.tokenizing import submit

LONG = "x" * (65 << 10)


def text(tenant: str, prompt: str = "short") -> Text:
    return Text.of(submit(1, prompt, tenant))


def started(queue: TextQueue) -> list[Text]:
    """Return all that may run now, in order."""
    texts = []
    while (next_text := queue.next()) is not None:
        texts.append(next_text)
    return texts


def test_tenants_take_turns() -> None:
    """Who has many texts waits for its own: one that came later has its turn before the third."""
    queue = TextQueue()
    for tenant in ["a", "a", "a", "b"]:
        queue.put(text(tenant))
    running = started(queue)
    assert [one.tenant for one in running] == ["a", "b", "a"]
    queue.ended(running[0])
    assert [one.tenant for one in started(queue)] == ["a"]
    assert not queue


def test_one_long_text_of_a_tenant_runs_at_a_time() -> None:
    """Long texts of one tenant come one after another, and leave its short ones alone."""
    queue = TextQueue()
    for prompt in [LONG, LONG, "short"]:
        queue.put(text("a", prompt))
    running = started(queue)
    assert [one.is_long for one in running] == [False, True]
    queue.ended(running[1])
    assert [one.is_long for one in started(queue)] == [True]


def test_so_many_run_at_most() -> None:
    """However many tenants have long texts, eight run, and then those who waited longest."""
    queue = TextQueue()
    for number in range(10):
        queue.put(text(f"{number}", LONG))
    running = started(queue)
    assert [one.tenant for one in running] == [f"{number}" for number in range(8)]
    queue.ended(running[3])
    assert [one.tenant for one in started(queue)] == ["8"]


def test_a_dropped_text_never_runs() -> None:
    """A text that nobody waits for is forgotten; to drop one that runs changes nothing here."""
    queue = TextQueue()
    first, second = text("a", LONG), text("a", LONG)
    queue.put(first)
    queue.put(second)
    assert started(queue) == [first]
    queue.drop(second)
    queue.drop(first)
    queue.ended(first)
    assert started(queue) == []
