"""The texts that all may share become tokens, as those of requests do, before they are shared."""

from __future__ import annotations

import itertools

from kserve_llamacpp.engine.cache.shared_prompts import ENDINGS
from kserve_llamacpp.wire.frames import (
    Rejected,
    SamplingParams,
    SharedText,
    SharePrompts,
    Submit,
)

_ids = itertools.count(-1, -1)  # the server's are positive


class SharedTexts:
    """What is to be tokenized for a command, and what of it has come back; owner: the worker."""

    def __init__(self, command: SharePrompts) -> None:
        self.command = command
        self._tokens: dict[tuple[str, bool], list[int]] = {}
        self._missing: dict[int, tuple[str, bool]] = {}
        self.requests: list[Submit] = []
        texts = [(each.text + end, each.add_special) for each in command.prompts for end in ENDINGS]
        for text, add_special in dict.fromkeys(texts):
            number = next(_ids)
            self._missing[number] = text, add_special
            self.requests.append(
                Submit(
                    number, f"shared{number}", text, None, SamplingParams(), add_special=add_special
                )
            )

    def take(self, result: Submit | Rejected) -> bool:
        """Take a text's tokens; whether that was the last. What is not for this is ignored."""
        text = self._missing.pop(result.id, None)
        if text is None:
            return False
        if isinstance(result, Submit) and isinstance(result.prompt, list):
            self._tokens[text] = result.prompt
        return not self._missing

    def tokens(self, text: SharedText) -> list[int]:
        """Return a text's tokens; none where it has none or too many."""
        return self._tokens.get((text.text, text.add_special), [])
