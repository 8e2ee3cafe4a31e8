"""What of the tokens a client sees: ends, special tokens, logprobs; over known answers."""

from __future__ import annotations

import pytest

from kserve_llamacpp.wire.frames import SamplingParams
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import BEGIN, END, Answer, FakeBackend, says


def _writes(*tokens: int) -> Answer:
    return lambda _prompt, position: tokens[position] if position < len(tokens) else END


def _run(answer: Answer, stops: list[str] | None = None, **params: object) -> EngineRun:
    run = EngineRun(FakeBackend(answer))
    run.submit("p", 8, stops=stops, sampling=SamplingParams(**params))  # type: ignore[arg-type]
    run.finish()
    return run


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "ab"),
        ({"include_stop_str_in_output": True}, "abc"),
    ],
)
def test_a_stop_token_ends_the_text(params: dict[str, object], text: str) -> None:
    """A token of `stop_token_ids` ends the text before it, or behind it where that is wanted."""
    run = _run(says("abcd"), stop_token_ids=[ord("c")], **params)

    assert (run.text(1), run.reason(1)) == (text, "stop")
    assert run.tokens(1) == [ord(letter) for letter in "abc"]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "ab"),
        ({"skip_special_tokens": False}, "a<begin>b"),
        ({"include_stop_str_in_output": True}, "ab<end>"),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, "a<begin>b<end>"),
    ],
)
def test_special_tokens_are_shown_where_that_is_wanted(
    params: dict[str, object], text: str
) -> None:
    """Control tokens have a text for `skip_special_tokens: false` alone; the end never leaks."""
    run = _run(_writes(ord("a"), BEGIN, ord("b")), **params)

    assert (run.text(1), run.reason(1)) == (text, "stop")


def test_stop_strings_are_not_sought_before_min_tokens() -> None:
    """A stop string within the first `min_tokens` tokens is text like any other."""
    assert _run(says("abab"), ["b"], min_tokens=2).text(1) == "aba"
    assert _run(says("abab"), ["b"]).text(1) == "a"


def test_logprobs_come_with_each_token_where_they_are_wanted() -> None:
    """Each output has the logprobs of its tokens; none where they were not asked for."""
    run = _run(says("abc"), logprobs=2)

    entries = [entry for output in run.outputs[1] for entry in output.logprobs]
    assert [entry.drawn.token for entry in entries] == run.tokens(1)
    assert [len(entry.top) for entry in entries] == [2] * 4
    assert all(not output.logprobs for output in _run(says("abc")).outputs[1])


def test_logprobs_are_counted_as_shown_with_their_text() -> None:
    """What may be a stop string is held back, its logprobs too; the end is never shown."""
    shown = [output.num_shown for output in _run(says("abcd"), ["bcx"], logprobs=0).outputs[1]]

    assert shown == [1, 1, 1, 4, 4]


def test_logprobs_of_a_stop_are_not_shown() -> None:
    """The tokens of a stop string are not counted as shown."""
    assert _run(says("abcd"), ["bc"], logprobs=0).outputs[1][-1].num_shown == 1


def test_counting_goes_on_after_a_replay() -> None:
    """Tokens of an earlier engine count among those that are shown."""
    run = EngineRun(FakeBackend(says("abcd")))
    run.submit("p", 8, resume=[ord("a"), ord("b")], sampling=SamplingParams(logprobs=0))
    run.finish()

    assert [output.num_shown for output in run.outputs[1]] == [3, 4, 4]
