"""From token bytes to text that may be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections import deque


class Detokenizer:
    """The text of one sequence; owner: its sequence.

    Invariant: what is held back is a character's first bytes, or a text that may be the start of a
    stop string; everything before that was returned.
    """

    def __init__(self, stops: list[str], include_stop: bool = False, min_tokens: int = 0) -> None:
        """`include_stop` shows the stop string; in the first `min_tokens` pieces none is sought."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._longest = max((len(stop) for stop in stops), default=0)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._held = ""
        self._num_pieces = 0
        self._num_decoded = 0  # characters, as all below
        self._num_released = 0
        self._spans: deque[tuple[int, int]] = deque()  # of the pieces that are not all shown
        self.stopped = False

    @property
    def num_shown(self) -> int:
        """How many pieces were fed whose text was returned; after a stop, also those cut by it."""
        return self._num_pieces - len(self._spans)

    def feed(self, piece: bytes) -> str:
        """Take a token's bytes, return the text that became certain.

        Sets `stopped` when a stop string is complete; the text ends before it then.
        """
        self._num_pieces += 1
        start = self._num_decoded
        new = self._decoder.decode(piece)
        self._num_decoded += len(new)
        is_cut, _ = self._decoder.getstate()  # the first bytes of a character
        self._spans.append((start, self._num_decoded + bool(is_cut)))
        return self._release(new)

    def flush(self) -> str:
        """Return what is held back, at the end of a sequence that no stop string ended."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:  # else the last character completed a stop string
            text += self._held
            self._held = ""
            self._spans.clear()
        return text

    def _release(self, new: str) -> str:
        text = self._without_stop(new)
        self._num_released += len(text)
        shown = self._num_released
        while self._spans and (
            self._spans[0][1] <= shown or (self.stopped and self._spans[0][0] < shown)
        ):
            self._spans.popleft()
        return text

    def _without_stop(self, new: str) -> str:
        if not self._stops or self._num_pieces <= self._min_tokens:
            return new
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start = min(found)  # the first to be complete, however the text came in pieces
            self.stopped = True
            self._held = ""
            return text[: end if self._include_stop else start]
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
