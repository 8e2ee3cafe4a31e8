"""One request inside the engine: its tokens, and how far they are computed."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Protocol

from kserve_llamacpp.engine.text.detokenizer import Detokenizer
from kserve_llamacpp.wire.frames import Logprobs, SamplingParams


class Sampler(Protocol):
    """Draws the next token of one sequence; owner: its sequence."""

    def sample(self, row: int, position: int) -> int:
        """Draw from the logits of batch row `row`; `position` counts generated tokens from 0."""
        ...

    def accept(self, token: int) -> None:
        """Take note of a token that was drawn before (a replay)."""
        ...

    def logprobs(self, row: int, token: int, num_top: int) -> Logprobs:
        """Return what the model itself, untouched by parameters, thought of a row's token."""
        ...

    def close(self) -> None:
        """Free what the sampler holds."""
        ...


class State(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A request's tokens and progress; owner: the scheduler (state), the engine (text, sampler).

    Invariants: `tokens` is the prompt and then what was generated, `known` is what comes next;
    `num_computed` of `tokens` are in the KV cache, fewer than there are, and `num_shared` of these
    in cells that the cache owns; only a running sequence has a slot and cells.
    """

    def __init__(
        self,
        id: int,
        request_id: str,
        prompt: list[int],
        max_tokens: int,
        sampling: SamplingParams,
        stops: list[str],
        resume: list[int],
        tenant: str = "",
        priority: int = 0,
        cache_salt: str = "",
        num_unsalted: int = 0,
        owner: str = "",
    ) -> None:
        self.id = id
        self.request_id = request_id
        self.tokens = prompt + resume if resume else prompt
        self._is_shared = not resume  # with the other choices: copied before it is written
        self.num_prompt = len(prompt)
        self.num_replayed = len(resume)
        self.known: deque[int] = deque()  # what is to be drawn next, whatever the model thinks
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.text = Detokenizer(stops, sampling.include_stop_str_in_output, sampling.min_tokens)
        self.sampler: Sampler | None = None
        self.state = State.WAITING
        self.slot: int | None = None
        self.num_computed = 0
        self.num_shared = 0
        self.num_cached: int | None = None  # tokens that it found in the cache when it was admitted
        self.num_own_cached = 0  # of these, those that its owner has used before
        self.num_overtaken = 0  # other prompts' tokens that were computed while its own waited
        self.num_charged = 0  # tokens of its prompt that its tenant was charged for in this slot
        self.num_failures = 0  # batches that failed since its last token, and threw it back
        self.tenant = tenant
        self.priority = priority
        self.cache_salt = cache_salt
        self.num_unsalted = num_unsalted  # first tokens, which it shares whatever the salt
        self.owner = owner
        self.is_announced = False
        self.is_resumable = False
        self.num_shown = 0  # of the resumed tokens: whose text is out, where that is told
        self.shown_text = b""

    def salt_at(self, position: int) -> str | None:
        """Return the salt of a token: it is shared with those of the same; None: with all."""
        return None if position < self.num_unsalted else self.cache_salt

    @property
    def prompt(self) -> list[int]:
        """What it began with."""
        return self.tokens if self._is_shared else self.tokens[: self.num_prompt]

    @property
    def generated(self) -> list[int]:
        """What was generated."""
        return self.tokens[self.num_prompt :]

    def append(self, token: int) -> None:
        """Take note of a token that was generated."""
        if self._is_shared:
            self.tokens = self.tokens.copy()
            self._is_shared = False
        self.tokens.append(token)

    def draw_again(self, num_kept: int) -> None:
        """Let what was generated, but the first tokens, be drawn once more, each for its logits."""
        start = self.num_prompt + num_kept
        self.known.extend(self.tokens[start:])
        self.tokens = self.tokens[:start]
        self._is_shared = False

    @property
    def num_generated(self) -> int:
        """How many tokens were generated."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """How many tokens are still to be computed; 1 while decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether the next step computes just the token that was drawn last."""
        return self.num_pending == 1 and self.num_computed > 0
