"""What is asked for."""

from __future__ import annotations

from bench.prompts import Prompts


def test_no_prompt_is_like_one_before() -> None:
    """A prefix cache finds nothing: no two prompts share their first words."""
    prompts = Prompts(seed=1)
    texts = [prompts.text(num_words) for num_words in [100, 400, 20] * 200]
    assert len({tuple(text.split()[:6]) for text in texts}) == len(texts)


def test_a_run_can_be_repeated() -> None:
    """The same seed gives the same prompts, another one others."""
    first, again, other = Prompts(1), Prompts(1), Prompts(2)
    texts = [prompts.text(50) for prompts in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_has_the_length_that_was_asked_for() -> None:
    """The words are counted, the instruction behind them is not."""
    assert 1500 <= len(Prompts(1).text(1500).split()) <= 1505
