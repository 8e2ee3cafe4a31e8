"""Text that may not be shown yet: it could still become something else."""

from __future__ import annotations

from collections.abc import Sequence

from openai_proxy.dialects.openai import broken_stream

REPLACEMENT = "\ufffd"  # what a decoder writes for a character that is not all there


class StopText:
    """Keeps stop strings out of a choice's text, for upstreams that leave them in; owner: a stream.

    Invariant: what is withheld is the longest end of the text that begins a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def add(self, text: str) -> str:
        """Take the next piece, return what may be shown."""
        text = self._held + text
        shown = len(text) - num_withheld(text, self._stops)
        self._held = text[shown:]
        return text[:shown]

    def end(self, is_stop: bool) -> str:
        """Return what was withheld; `is_stop`: a stop string ended the text, and is left out."""
        return without_stop(self._held, self._stops) if is_stop else self._held


class CutText:
    """Ends a choice's text at its first stop string, for upstreams that go on; owner: a stream.

    Invariant: what is withheld is the longest end of the text that begins a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.is_cut = False

    def add(self, text: str) -> str:
        """Take the next piece, return what may be shown; nothing more once `is_cut`."""
        text = self._held + text
        self._held = ""
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.is_cut = True
            return text[: min(found)]
        shown = len(text) - num_withheld(text, self._stops)
        self._held = text[shown:]
        return text[:shown]

    def rest(self) -> str:
        """Return what was withheld, and became no stop string."""
        held, self._held = self._held, ""
        return held


class GrowingText:
    """Finds what is new in a text that is sent whole again and again; owner: one choice.

    Withheld are half characters, and what may become a stop string: the upstream would take both
    back. Where it takes back what was sent already, that stays, and only what follows is sent.
    """

    def __init__(self, stops: Sequence[str], is_incremental: bool = False) -> None:
        self._stops = stops
        self._is_incremental = is_incremental
        self._whole = ""
        self._sent = ""

    def advance(self, text: str, is_last: bool) -> str:
        """Take the text as it is now, or its next part, and return what may be shown in addition.

        Raises BadGateway (`upstream_stream_broken`) where it contradicts what was shown.
        """
        if self._is_incremental:
            text = self._whole = self._whole + text
        shown = text if is_last else self._settled(text)
        if self._sent.startswith(shown):
            return ""
        if not shown.startswith(self._sent):
            raise broken_stream()
        new = shown[len(self._sent) :]
        self._sent = shown
        return new

    def _settled(self, text: str) -> str:
        text = text.rstrip(REPLACEMENT)
        return text[: len(text) - num_withheld(text, self._stops)]


def num_withheld(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of a text that begins, or is, a stop string."""
    return max((_num_begun(text[-len(stop) :], stop) for stop in stops), default=0)


def _num_begun(end: str, stop: str) -> int:
    at = end.find(stop[0])
    while at >= 0 and not stop.startswith(end[at:]):
        at = end.find(stop[0], at + 1)
    return len(end) - at if at >= 0 else 0


def without_stop(text: str, stops: Sequence[str]) -> str:
    """Return a text without the longest stop string that it ends with."""
    ends = [len(stop) for stop in stops if text.endswith(stop)]
    return text[: len(text) - max(ends, default=0)]


class PromptEcho:
    """Takes a repeated prompt off the start of a text that comes in pieces; owner: its stream."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._held = ""
        self._is_over = not prompt

    def pass_on(self, piece: str) -> str:
        """Return what of the text is surely no echo."""
        if self._is_over:
            return piece
        self._held += piece
        if len(self._held) < len(self._prompt) and self._prompt.startswith(self._held):
            return ""
        return self.rest()

    def rest(self) -> str:
        """Return what was held back: a text that only began as its prompt does."""
        held, self._held, self._is_over = self._held, "", True
        return held.removeprefix(self._prompt)
