"""Going on from tokens that an earlier engine has generated: no text twice, none lost."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_llamacpp.engine.sampling.seed import draw_seed
from kserve_llamacpp.wire.frames import SamplingParams
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import END, FakeBackend, says

_ANSWERS = [
    ("plain letters", []),
    ("grüße, 😀 and €!", []),
    ("before STOP after", ["STOP"]),
    ("ST STO STOP", ["STOP"]),
    ("a€€b", ["€b"]),
    ("ends with ST", ["STOP"]),
]


def _run(answer: str, stops: list[str], resume: list[int], limit: int | None) -> EngineRun:
    run = EngineRun(FakeBackend(says(answer), num_cells=128), num_cells=128)
    run.submit("prompt", stops=stops, resume=resume, max_tokens=limit)
    run.finish()
    return run


def _check_every_cut(answer: str, stops: list[str], limit: int | None) -> None:
    whole = _run(answer, stops, [], limit)
    outputs = whole.outputs[1]
    for cut in range(len(outputs)):
        sent = "".join(output.text for output in outputs[:cut])
        resumed = _run(answer, stops, whole.tokens(1)[:cut], limit)

        assert sent + resumed.text(1) == whole.text(1)
        assert whole.tokens(1)[:cut] + resumed.tokens(1) == whole.tokens(1)
        assert resumed.reason(1) == whole.reason(1)


@pytest.mark.parametrize(("answer", "stops"), _ANSWERS)
def test_resumed_at_any_token_the_text_goes_on_where_it_was(answer: str, stops: list[str]) -> None:
    """For every cut, the text sent before it and after it is the text without a cut.

    Characters and stop strings that lie across the cut are no exception.
    """
    _check_every_cut(answer, stops, None)


@given(
    answer=st.text(alphabet="ab€😀", min_size=1, max_size=8),
    stops=st.lists(st.text(alphabet="ab€", min_size=1, max_size=3), max_size=2),
    limit=st.none() | st.integers(min_value=1, max_value=20),
)
def test_any_answer_can_be_resumed_at_any_token(
    answer: str, stops: list[str], limit: int | None
) -> None:
    """The same holds for any answer, any stop strings and any limit."""
    _check_every_cut(answer, stops, limit)


def test_tokens_before_the_cut_count_against_the_limit() -> None:
    """`max_tokens` holds for the whole answer, not for what comes after the cut."""
    run = _run("abcdefgh", [], [ord("a"), ord("b"), ord("c")], 5)

    assert run.tokens(1) == [ord("d"), ord("e")]
    assert run.reason(1) == "length"


@pytest.mark.parametrize(("answer", "stops"), _ANSWERS)
def test_no_logprob_is_lost_or_told_twice(answer: str, stops: list[str]) -> None:
    """Tokens whose text is held back at the cut are scored again where the stream goes on."""

    def run(resume: list[int]) -> EngineRun:
        run = EngineRun(FakeBackend(says(answer), num_cells=128), num_cells=128)
        sampling = SamplingParams(logprobs=1)
        run.submit("prompt", stops=stops, resume=resume, sampling=sampling)
        run.finish()
        return run

    whole = run([])
    outputs = whole.outputs[1]
    scores = [entry for output in outputs for entry in output.logprobs]
    for cut in range(1, len(outputs)):
        resumed = run(whole.tokens(1)[:cut])

        told = scores[: outputs[cut - 1].num_shown]
        assert resumed.starts[1].num_shown == len(told)
        assert resumed.starts[1].shown_text == answer.encode()[: len(told)]
        assert told + [e for o in resumed.outputs[1] for e in o.logprobs] == scores
        assert whole.tokens(1)[:cut] + resumed.tokens(1) == whole.tokens(1)
        assert "".join(o.text for o in outputs[:cut]) + resumed.text(1) == whole.text(1)


def test_scores_that_came_are_not_computed_again() -> None:
    """After a death only what the server has no logprobs of is scored again."""
    run = EngineRun(FakeBackend(says("abSTx")))
    resume = [ord(char) for char in "abST"]
    sampling = SamplingParams(logprobs=0)
    run.submit("p", stops=["STOP"], resume=resume, num_scored=3, sampling=sampling)
    run.finish()

    assert [e.drawn.token for o in run.outputs[1] for e in o.logprobs] == [ord("T"), ord("x"), END]


@pytest.mark.parametrize(
    ("answer", "stops"), [("ab", []), ("abSTOP", ["STOP"]), ("abST", ["STOP"])]
)
def test_tokens_that_have_ended_have_an_end_and_no_more(answer: str, stops: list[str]) -> None:
    """Whose last token ends it is told the reason alone, without computing anything."""
    whole = _run(answer, stops, [], None)
    run = _run(answer, stops, whole.tokens(1), None)

    assert (run.tokens(1), run.text(1), run.reason(1)) == ([], "", "stop")
    assert run.backend.batches == []
    assert run.started == [1]


def test_a_choice_that_ended_elsewhere_is_not_computed() -> None:
    """With the reason of its end known, tokens need not look like an end."""
    run = EngineRun(FakeBackend(says("abc")))
    run.submit("p", resume=[ord("a")], ended="length")
    run.finish()

    assert (run.tokens(1), run.reason(1), run.backend.batches) == ([], "length", [])


def test_without_room_for_another_token_the_held_back_text_comes() -> None:
    """Where the limit is lower than it was, the end is here, and so is the rest of the text."""
    run = _run("abSTx", ["STOP"], [ord(char) for char in "abST"], 4)

    assert (run.text(1), run.reason(1)) == ("ST", "length")


def test_tokens_behind_an_end_are_refused() -> None:
    """What goes on after its end was not generated for this request."""
    run = EngineRun(FakeBackend(says("ab")))
    run.submit("p", resume=[ord("a"), END, ord("b")])
    run.finish()

    assert run.rejections[1].reason == "ended_before"


def test_more_tokens_than_the_context_has_are_refused() -> None:
    """A stream from a larger context is refused at the door, with both counts."""
    run = EngineRun(FakeBackend(says("ab"), max_length=8))
    run.submit("12345", resume=[ord("a")] * 4)
    run.finish()

    assert run.rejections[1].reason == "context_length"
    assert "5 tokens and its answer so far 4" in run.rejections[1].message


def test_the_prompts_hash_is_told_where_it_is_asked_for() -> None:
    """It depends on the tokens alone, however the prompt was given, and is the same for ever."""
    run = EngineRun()
    run.submit("ab", is_resumable=True, max_tokens=1)
    run.submit([ord("a"), ord("b")], is_resumable=True, resume=[ord("x")], max_tokens=2)
    run.submit("ac", is_resumable=True, max_tokens=1)
    run.submit("ab", max_tokens=1)
    run.finish()
    one, same, another, without = (run.starts[at].prompt_hash for at in (1, 2, 3, 4))

    assert one == hashlib.sha256(b"a\0\0\0b\0\0\0").hexdigest()
    assert same == one
    assert another != one
    assert without == ""


def test_the_prompt_is_told_without_the_resumed_tokens() -> None:
    """The start tells the prompt's own length: the resumed tokens are part of the answer."""
    run = EngineRun(FakeBackend(says("abc")))
    run.submit("prompt", resume=[ord("a")])

    started = run.step().events[0]

    assert getattr(started, "prompt_tokens", None) == len("prompt")


def test_resumed_tokens_are_prefilled_with_the_prompt() -> None:
    """Prompt and resumed tokens are computed as one prompt, in chunks, and only then drawn on."""
    run = EngineRun(FakeBackend(says("abcdef")), step_tokens=4)
    run.submit("prompt", resume=[ord("a"), ord("b")])

    run.steps(2)

    assert [row.position for batch in run.backend.batches for row in batch] == list(range(8))
    assert run.tokens(1) == [ord("c")]


def test_a_resumed_request_can_be_preempted() -> None:
    """Giving up cells after a resume loses nothing either."""
    run = EngineRun(FakeBackend(says("abcdefgh"), num_cells=16), num_cells=16)
    run.submit("1234")
    run.submit("5678", resume=[ord("a")])
    run.finish()

    assert sum(stats.preemptions for stats in run.stats) > 0
    assert run.tokens(2) == [*b"bcdefgh", END]


@pytest.mark.parametrize(
    ("other", "is_same"),
    [((7, 0, 3), True), ((8, 0, 3), False), ((7, 1, 3), False), ((7, 0, 4), False)],
)
def test_a_draw_depends_on_seed_choice_and_position_alone(
    other: tuple[int, int, int], is_same: bool
) -> None:
    """The same place draws with the same seed in every process; any other with another."""
    assert (draw_seed(*other) == draw_seed(7, 0, 3)) is is_same


def test_draw_seeds_are_stable() -> None:
    """The seeds of a release stay those of the next: a resume may cross an update."""
    assert [draw_seed(42, 0, position) for position in range(3)] == [
        1133309433,
        310521198,
        777261169,
    ]


@given(
    seed=st.integers(min_value=-(2**63), max_value=2**63 - 1),
    choice=st.integers(min_value=0, max_value=127),
    position=st.integers(min_value=0, max_value=2**31),
)
def test_draw_seeds_are_seeds(seed: int, choice: int, position: int) -> None:
    """A seed has 32 bits and is never the number that llama.cpp takes for "at random"."""
    assert 0 <= draw_seed(seed, choice, position) < 0xFFFFFFFF
