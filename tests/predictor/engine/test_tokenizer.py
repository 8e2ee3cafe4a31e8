"""Long prompts are tokenized beside the loop."""

from __future__ import annotations

import select
import threading

import msgspec

from kserve_llamacpp.engine.frames import Rejected, SamplingParams, Submit
from kserve_llamacpp.engine.tokenizer import BackgroundTokenizer, TokenizeOnce


def submit(id: int, prompt: str) -> Submit:
    return Submit(id, f"r{id}", prompt, None, SamplingParams())


def wait_for(tokenizer: BackgroundTokenizer) -> list[Submit | Rejected]:
    """Wait as the worker does, and collect."""
    poll = select.poll()
    poll.register(tokenizer, select.POLLIN)
    while True:
        assert poll.poll(10_000)
        if results := tokenizer.collect():
            return results


def test_results_come_in_order_and_wake_the_loop() -> None:
    """What was put in is collected in the same order, refusals as well; then nothing is left."""

    def tokenize(request: Submit) -> Submit | Rejected:
        if request.prompt == "no":
            return Rejected(request.id, "empty_prompt", "no")
        return Submit(request.id, "r", [1], None, SamplingParams())

    tokenizer = BackgroundTokenizer(tokenize)
    for number, prompt in enumerate(["a", "no", "b"]):
        tokenizer.put(submit(number, prompt))
    results: list[Submit | Rejected] = []
    while len(results) < 3:
        results += wait_for(tokenizer)
    assert [result.id for result in results] == [0, 1, 2]
    assert isinstance(results[1], Rejected)
    assert tokenizer.collect() == []


def test_a_forgotten_request_is_not_collected() -> None:
    """A request whose client left while its prompt was being tokenized never reaches the engine."""
    may_go_on = threading.Event()

    def tokenize(request: Submit) -> Submit | Rejected:
        may_go_on.wait(10)
        return Submit(request.id, "r", [1], None, SamplingParams())

    tokenizer = BackgroundTokenizer(tokenize)
    tokenizer.put(submit(1, "a"))
    tokenizer.put(submit(2, "b"))
    tokenizer.forget(1)
    may_go_on.set()
    assert [result.id for result in wait_for(tokenizer)] == [2]


def test_choices_share_their_tokens() -> None:
    """A text that comes again at once is not tokenized again, unless its first token differs."""
    texts = []

    def tokenize(request: Submit) -> Submit | Rejected:
        if request.prompt == "no":
            return Rejected(request.id, "empty_prompt", "no")
        if isinstance(request.prompt, str):
            texts.append(request.prompt)
            return msgspec.structs.replace(request, prompt=[len(texts), request.add_special])
        return request

    once = TokenizeOnce(tokenize)
    plain = [submit(number, text) for number, text in enumerate("aaba")]
    bare = msgspec.structs.replace(submit(4, "a"), add_special=False)
    results = [once(request) for request in [*plain, bare]]

    assert texts == ["a", "b", "a", "a"]
    prompts = [result.prompt for result in results if isinstance(result, Submit)]
    assert prompts == [[1, True], [1, True], [2, True], [3, True], [4, False]]
    assert [result.id for result in results] == [0, 1, 2, 3, 4]
    assert [once(submit(number, "no")).id for number in (5, 6)] == [5, 6]
