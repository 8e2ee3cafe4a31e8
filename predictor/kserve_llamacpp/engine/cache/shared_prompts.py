"""Which first tokens every tenant may share: those of prompts that the operator has named."""

from __future__ import annotations

from collections.abc import Callable

from kserve_llamacpp.engine.cache.memory import MIN_SHARED, common_length

# What may follow a prompt in a conversation. A tokenizer may join it to the prompt's last letters:
# the tokens that do not depend on it are shared.
ENDINGS = ("", "a", " a", "\n\na", "1", ".")


class SharedPrompts:
    """The tokens of the named prompts; owner: the engine."""

    def __init__(self) -> None:
        self._prompts: list[list[int]] = []  # longest first

    def length(self, tokens: list[int]) -> int:
        """Return how many of a prompt's first tokens are those of a named prompt, as a whole.

        The beginning of a named prompt counts nothing: who does not know it could find it out,
        token by token, by the time that an answer takes.
        """
        for prompt in self._prompts:
            end = len(prompt)
            if end <= len(tokens) and tokens[end - 1] == prompt[-1] and tokens[:end] == prompt:
                return end
        return 0

    def replace(self, prompts: list[Callable[[str], list[int]]]) -> list[int]:
        """Name other prompts; return the length of each in tokens, 0 where it is not used.

        Each comes as a function: what follows it -> the tokens of both. One of fewer tokens than
        are worth sharing is not used.
        """
        found = [_stable(tokenize) for tokenize in prompts]
        used = {tuple(tokens) for tokens in found if len(tokens) >= MIN_SHARED}
        self._prompts = sorted((list(tokens) for tokens in used), key=len, reverse=True)
        return [len(tokens) if len(tokens) >= MIN_SHARED else 0 for tokens in found]


def _stable(tokenize: Callable[[str], list[int]]) -> list[int]:
    """Return a prompt's first tokens that are the same whatever follows it."""
    first, *others = (tokenize(ending) for ending in ENDINGS)
    return first[: min(common_length(first, other) for other in others)]
