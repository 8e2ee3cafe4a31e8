"""Going on from tokens that an earlier engine has generated: no text twice, none lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_llamacpp.engine.sampling import draw_seed
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
