"""From token bytes to text that may be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs


class Detokenizer:
    """The text of one sequence; owner: its sequence.

    Invariant: what is held back is a character's first bytes, or a text that may be the start of a
    stop string; everything before that was returned.
    """

    def __init__(self, stops: list[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """Take a token's bytes, return the text that became certain.

        Sets `stopped` when a stop string is complete; the text ends before it then.
        """
        return self._release(self._decoder.decode(piece))

    def flush(self) -> str:
        """Return what is held back, at the end of a sequence that no stop string ended."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""  # emptied where a stop string was completed
        return text + held

    def _release(self, new: str) -> str:
        if not self._stops:
            return new
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, start = min(found)  # the first to be complete, however the text came in pieces
            self.stopped = True
            self._held = ""
            return text[:start]
        keep = self._held_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _held_length(self, text: str) -> int:
        """Return the length of the longest end of `text` that starts a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
