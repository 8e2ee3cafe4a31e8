"""What the engine refuses, each with its reason and without harm to others."""

from __future__ import annotations

import pytest

from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import N_VOCAB, FakeBackend


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths() -> None:
    """A prompt over the context is told the context's length and its own."""
    run = EngineRun(FakeBackend(max_length=20))
    one = run.submit("x" * 21)
    run.step()

    rejection = run.rejections[one]
    assert rejection.reason == "context_length"
    assert "maximum context length is 20 tokens" in rejection.message
    assert "your prompt has 21 tokens" in rejection.message


@pytest.mark.parametrize(("length", "is_refused"), [(18, False), (19, False), (20, True)])
def test_a_prompt_must_leave_room_for_one_token(length: int, is_refused: bool) -> None:
    """A prompt that fills the context leaves no room for an answer; one token less is served."""
    run = EngineRun(FakeBackend(max_length=20))
    one = run.submit("x" * length)
    run.finish()

    assert (one in run.rejections) is is_refused
    assert len(run.tokens(one)) == (0 if is_refused else 20 - length)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("", "empty_prompt"), ([], "empty_prompt"), ([1, N_VOCAB], "token_out_of_range")],
)
def test_a_prompt_without_tokens_or_with_strange_ones_is_refused(
    prompt: str | list[int], reason: str
) -> None:
    """An empty prompt and a token that the vocabulary has not are refused with their reasons."""
    run = EngineRun()
    one = run.submit(prompt)
    run.step()

    assert run.rejections[one].reason == reason
    run.assert_empty()


def test_the_largest_token_is_taken() -> None:
    """The vocabulary's last token is in range."""
    run = EngineRun()
    one = run.submit([N_VOCAB - 1], max_tokens=1)
    run.finish()

    assert run.reason(one) == "length"


def test_a_refusal_is_work_to_tell() -> None:
    """An engine with nothing but a refusal to tell has work, or the client would wait forever."""
    run = EngineRun()
    run.submit("")

    assert run.engine.has_work
    run.step()
    assert not run.engine.has_work


def test_a_refusal_harms_nobody_else() -> None:
    """Requests beside a refused one go on as if it had not come."""
    run = EngineRun()
    before = run.submit("a", max_tokens=4)
    run.step()
    refused = run.submit("")
    after = run.submit("b", max_tokens=4)
    run.finish()

    assert list(run.rejections) == [refused]
    assert len(run.tokens(before)) == len(run.tokens(after)) == 4
