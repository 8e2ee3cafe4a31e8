"""The engine's steps: what is batched together, what is told, and when a request ends."""

from __future__ import annotations

import pytest

from kserve_llamacpp.wire.frames import Output, Started
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import BEGIN, END, FakeBackend, letters_after, says


def test_a_request_gets_its_start_its_tokens_and_its_end() -> None:
    """One request is told its start with the prompt's length, then a token a step, then the end."""
    run = EngineRun(FakeBackend(says("hey")))
    one = run.submit("prompt")

    steps = [run.step().events for _ in range(4)]

    assert steps == [
        [Started(id=one, prompt_tokens=6), Output(id=one, tokens=[ord("h")], text="h")],
        [Output(id=one, tokens=[ord("e")], text="e")],
        [Output(id=one, tokens=[ord("y")], text="y")],
        [Output(id=one, tokens=[END], text="", finish_reason="stop")],
    ]
    run.assert_empty()


def test_special_tokens_are_added_where_they_are_wanted() -> None:
    """A text without its first token gets it from the tokenizer, counted as a prompt token."""
    run = EngineRun()
    run.submit("ab", add_special=True, max_tokens=1)

    step = run.step()

    assert [row.token for row in run.backend.batches[0]] == [BEGIN, ord("a"), ord("b")]
    assert isinstance(step.events[0], Started)
    assert step.events[0].prompt_tokens == 3


def test_a_prompt_of_tokens_is_taken_as_it_is() -> None:
    """Token ids are not tokenized again."""
    run = EngineRun()
    run.submit([5, BEGIN, 7], add_special=True, max_tokens=1)

    run.step()

    assert [row.token for row in run.backend.batches[0]] == [5, BEGIN, 7]


def test_logits_are_wanted_of_last_tokens_alone() -> None:
    """A prompt in chunks asks for logits once, for its last token."""
    run = EngineRun(step_tokens=4)
    run.submit("0123456789")
    run.steps(3)

    outputs = [[row.position for row in batch if row.is_output] for batch in run.backend.batches]

    assert outputs == [[], [], [9]]


def test_decoders_come_first_and_in_every_batch() -> None:
    """While a long prompt is prefilled, each batch begins with the token of who decodes."""
    run = EngineRun(prefill_tokens_beside_decode=4)
    first = run.submit("a")
    run.step()
    run.submit("b" * 30)
    tokens_before = len(run.tokens(first))

    run.steps(7)

    slot_of_first = run.backend.batches[0][0].slot
    for batch in run.backend.batches[1:8]:
        assert batch[0].slot == slot_of_first
        assert len(batch) <= 1 + 4
    assert len(run.tokens(first)) == tokens_before + 7


def test_decoders_of_several_requests_share_a_batch() -> None:
    """Requests are decoded together: one batch a step, one row for each."""
    run = EngineRun()
    for prompt in ("a", "b", "c"):
        run.submit(prompt, max_tokens=5)
    run.finish()

    assert [len(batch) for batch in run.backend.batches] == [3] * 5


def test_a_batch_never_exceeds_the_steps_budget() -> None:
    """Neither prompts nor decoders make a batch larger than llama.cpp was set up for."""
    run = EngineRun(num_cells=400, step_tokens=8, prefill_tokens_beside_decode=8)
    for at in range(6):
        run.submit("x" * (5 + 7 * at), max_tokens=6)
    run.finish()

    assert max(len(batch) for batch in run.backend.batches) == 8


def test_requests_start_and_end_in_order_of_arrival() -> None:
    """With one slot, requests are served one after another as they came."""
    run = EngineRun(max_sequences=1)
    ids = [run.submit(prompt, max_tokens=2) for prompt in ("aa", "b", "cccc")]
    ended = []
    while run.engine.has_work:
        run.step()
        ended += [one for one in ids if run.is_done(one) and one not in ended]

    assert run.started == ids
    assert ended == ids


def test_company_changes_no_answer() -> None:
    """Each request gets exactly what it gets alone, whoever shares its batches."""
    run = EngineRun(num_cells=200)
    prompts = ["a", "bb" * 20, "ccc", "d" * 17, "e"]
    ids = [run.submit(prompt, max_tokens=9) for prompt in prompts]
    run.finish()

    assert [run.text(one) for one in ids] == [letters_after(prompt, 9) for prompt in prompts]


def test_max_tokens_ends_with_length() -> None:
    """After `max_tokens` tokens a request ends with the reason `length`."""
    run = EngineRun()
    one = run.submit("p", max_tokens=3)
    run.finish()

    assert (len(run.tokens(one)), run.reason(one)) == (3, "length")


def test_a_full_context_ends_with_length() -> None:
    """Without a limit a request runs until prompt and answer fill the longest sequence."""
    run = EngineRun(FakeBackend(num_cells=64, max_length=20))
    one = run.submit("01234567")
    run.finish()

    assert (len(run.tokens(one)), run.reason(one)) == (12, "length")


def test_the_end_token_is_not_text() -> None:
    """The end token ends with `stop`; it is counted as a token and shows nothing."""
    run = EngineRun(FakeBackend(says("ok")))
    one = run.submit("p", max_tokens=3)
    run.finish()

    assert (run.text(one), run.tokens(one)[-1], run.reason(one)) == ("ok", END, "stop")


@pytest.mark.parametrize(
    ("answer", "stops", "text"),
    [
        ("hello world", ["o w"], "hell"),
        ("hello world", ["world"], "hello "),
        ("hello world", ["x", "ld", "rl"], "hello wo"),
        ("hello", ["h"], ""),
        ("grüße", ["ß"], "grü"),
    ],
)
def test_a_stop_string_ends_and_is_not_shown(answer: str, stops: list[str], text: str) -> None:
    """A stop string, over however many tokens, ends with `stop` and none of it is shown."""
    run = EngineRun(FakeBackend(says(answer)))
    one = run.submit("p", stops=stops)
    run.finish()

    assert (run.text(one), run.reason(one)) == (text, "stop")


@pytest.mark.parametrize(("limit", "reason"), [(4, "length"), (None, "stop")])
def test_what_is_held_back_for_a_stop_comes_with_the_end(limit: int | None, reason: str) -> None:
    """Text that might have begun a stop string is shown when the end comes first."""
    run = EngineRun(FakeBackend(says("abST")))
    one = run.submit("p", max_tokens=limit, stops=["STOP"])
    run.finish()

    assert (run.text(one), run.reason(one)) == ("abST", reason)


def test_a_stop_that_the_limit_completes_is_a_stop() -> None:
    """When the last broken character completes a stop string, the reason is `stop`."""
    run = EngineRun(FakeBackend(says("a€")))
    one = run.submit("p", max_tokens=2, stops=["\ufffd"])
    run.finish()

    assert (run.text(one), run.reason(one)) == ("a", "stop")


def test_characters_of_several_tokens_are_shown_whole() -> None:
    """A token that is part of a character gives no text until the character is whole."""
    run = EngineRun(FakeBackend(says("€!")))
    one = run.submit("p")
    run.finish()

    assert [output.text for output in run.outputs[one]] == ["", "", "€", "!", ""]


def test_an_idle_engine_has_no_work_and_computes_nothing() -> None:
    """A step without requests is no batch and tells nothing."""
    run = EngineRun()

    assert not run.engine.has_work
    assert run.step().events == []
    assert run.backend.batches == []
    assert run.stats[-1].steps == 0


def test_stats_are_the_state_and_what_changed_since_the_last() -> None:
    """Gauges tell the state after the step; counters start anew with each frame."""
    run = EngineRun(max_sequences=1, step_tokens=4)
    run.submit("012345", max_tokens=3)
    run.submit("later", max_tokens=1)

    stats = [run.step().stats for _ in range(4)]

    assert [(s.running, s.waiting, s.cells_used) for s in stats] == [
        (1, 1, 4),
        (1, 1, 6),
        (1, 1, 7),
        (0, 1, 0),
    ]
    assert {s.cells_total for s in stats} == {64}
    assert [(s.steps, s.prefill_tokens, s.decode_tokens) for s in stats] == [
        (1, 4, 0),
        (1, 2, 0),
        (1, 0, 1),
        (1, 0, 1),
    ]
