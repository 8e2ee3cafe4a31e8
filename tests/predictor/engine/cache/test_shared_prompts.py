"""Which first tokens all tenants may share."""

from __future__ import annotations

from functools import partial

from kserve_llamacpp.engine.cache.shared_prompts import SharedPrompts


def _tokens(text: str) -> list[int]:
    """Cut a text into letters, but for a full stop, which takes all that follows with it."""
    head, stop, rest = text.partition(".")
    return [*map(ord, head), *([hash(stop + rest)] if stop else [])]


def _shared(*prompts: str) -> SharedPrompts:
    shared = SharedPrompts()
    shared.replace([partial(lambda prompt, ending: _tokens(prompt + ending), p) for p in prompts])
    return shared


def test_a_token_that_what_follows_may_change_is_not_shared() -> None:
    """Of a prompt those tokens count that are there whatever comes behind it."""
    assert _shared("You are kind.").length(_tokens("You are kind. My card")) == 12


def test_the_longest_prompt_counts() -> None:
    """Of several prompts that a text begins with, the longest is shared."""
    shared = _shared("You are", "You are kind", "You are king")

    assert shared.length(_tokens("You are kind to me")) == 12
    assert shared.length(_tokens("You are kin")) == 7
    assert shared.length(_tokens("You ar")) == 0


def test_too_little_is_not_shared() -> None:
    """A prompt of fewer tokens than are worth sharing is not used, and told to be none."""
    shared = SharedPrompts()

    assert shared.replace([lambda e: _tokens("You" + e), lambda e: _tokens("Your" + e)]) == [0, 4]
    assert shared.length(_tokens("You are")) == 0


def test_other_prompts_take_the_place_of_the_first() -> None:
    """What was named before counts no more."""
    shared = _shared("You are kind")
    shared.replace([lambda ending: _tokens("Be kind" + ending)])

    assert shared.length(_tokens("You are kind")) == 0
    assert shared.length(_tokens("Be kind")) == 7
