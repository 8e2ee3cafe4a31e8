"""A running request, as the server sees it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from kserve_llamacpp.wire.frames import FinishReason, Logprobs, Output, SamplingParams, Started
from openai_protocol.errors import ApiError


@dataclass
class Request:
    """What the server asks of the engine for one choice; `field` is the prompt's in its body.

    `resume` are tokens that another server has generated, `ended` says that they are all.
    """

    request_id: str
    prompt: str | list[int]
    max_tokens: int | None
    sampling: SamplingParams
    stops: list[str] = dataclasses.field(default_factory=list)
    add_special: bool = True
    field: str = "prompt"
    tenant: str = ""
    priority: int = 0  # inside the tenant, lower is earlier
    cache_salt: str = ""
    is_apart: bool = False  # from all other salts, whatever prompts the operator has named
    owner: str = ""  # who is told of cached tokens, of those that it has used before
    resume: list[int] = dataclasses.field(default_factory=list)
    ended: FinishReason | None = None
    is_resumable: bool = False


@dataclass(frozen=True)
class Delta:
    """What one or several steps gave a request; the last one has a finish reason.

    `logprobs` are of the tokens whose text is out, those of this text or of an earlier one.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason | None
    logprobs: list[Logprobs] = dataclasses.field(default_factory=list)


@dataclass(eq=False)
class Group:
    """The choices that one request has asked for; owner: the client.

    The queue takes and refuses them together, and none of them once one has begun: what was sent
    to the request's client would lack the rest.
    """

    generations: list[Generation] = dataclasses.field(default_factory=list)
    has_begun: bool = False

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.generations[0].request.tenant

    @property
    def urgency(self) -> tuple[int, int]:
        """Where it stands in its tenant's queue; a lower one is earlier."""
        first = self.generations[0]
        return first.request.priority, first.id


class Generation:
    """What has come for a request's choice, and what is to be told; owner: the client.

    Invariant: `tokens` are those whose text was put into the deltas, so that a new engine can go
    on from them.
    """

    def __init__(self, id: int, request: Request, came_at: float, group: Group) -> None:
        self.id = id
        self.request = request
        self.came_at = came_at
        self.group = group
        self.tokens: list[int] = list(request.resume)
        self.prompt_tokens: int | None = None
        self.prompt_hash = ""  # where the request is resumable
        self.shown_text = b""  # of resumed tokens, where logprobs were asked for
        self.cached_tokens = 0  # of the prompt, as its owner may know
        self.sum_logprob = 0.0  # of all tokens, where logprobs were asked for
        self._held_logprobs: deque[Logprobs] = deque()  # of tokens whose text is not out yet
        self._num_shown = 0
        self.num_deaths = 0  # of engines in a row that had it and gave it no token
        self.is_suspect = False  # to be tried before others run beside it
        self.is_prime_suspect = False  # an engine died while it was on trial: to be tried alone
        self.is_proven = False  # an engine has given it a token
        self.last_token_at: float | None = None
        self._pending: deque[Delta] = deque()
        self._error: ApiError | None = None
        self._changed = asyncio.Event()
        self.is_ended = False

    async def started(self) -> int:
        """Wait until the request has left the queue; return its prompt's length in tokens.

        Raises ApiError when the engine refuses it.
        """
        while self.prompt_tokens is None and self._error is None:
            await self._wait()
        if self._error is not None and not self._pending:
            raise self._error
        assert self.prompt_tokens is not None
        return self.prompt_tokens

    async def deltas(self) -> AsyncIterator[Delta]:
        """Yield what comes, several steps at once when the reader is slow; raises ApiError."""
        while True:
            while not self._pending:
                if self._error is not None:
                    raise self._error
                await self._wait()
            delta = self._take()
            yield delta
            if delta.finish_reason is not None:
                return

    def _take(self) -> Delta:
        text = "".join(delta.text for delta in self._pending)
        tokens = [token for delta in self._pending for token in delta.tokens]
        finish_reason = self._pending[-1].finish_reason
        logprobs = [entry for delta in self._pending for entry in delta.logprobs]
        self._pending.clear()
        return Delta(text, tokens, finish_reason, logprobs)

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    @property
    def mean_logprob(self) -> float:
        """How likely the model finds what it wrote, per token."""
        return self.sum_logprob / max(1, len(self.tokens))

    @property
    def num_scored(self) -> int:
        """Of how many tokens the logprobs have come, or were sent by another server."""
        return self._num_shown + len(self._held_logprobs)

    def clear(self) -> None:
        """Take note that the deaths so far were not its own fault."""
        self.num_deaths = 0
        self.is_suspect = self.is_prime_suspect = False

    def put_started(self, started: Started) -> None:
        """Take note that the engine has begun with the prompt, of which a cache had a part."""
        self.group.has_begun = True
        self.prompt_tokens = started.prompt_tokens
        self.cached_tokens = started.own_cached_tokens
        self.prompt_hash = started.prompt_hash
        self.shown_text = started.shown_text
        self._num_shown = started.num_shown
        self._changed.set()

    def put(self, output: Output) -> None:
        """Take what a step gave."""
        self.tokens += output.tokens
        logprobs = self._shown_logprobs(output)
        self._pending.append(Delta(output.text, output.tokens, output.finish_reason, logprobs))
        self._changed.set()

    def _shown_logprobs(self, output: Output) -> list[Logprobs]:
        """Return the logprobs of the tokens whose text came out with this output."""
        self._held_logprobs.extend(output.logprobs)
        self.sum_logprob += sum(entry.drawn.logprob for entry in output.logprobs)
        shown = []
        while self._held_logprobs and self._num_shown < output.num_shown:
            shown.append(self._held_logprobs.popleft())
            self._num_shown += 1
        return shown

    def fail(self, error: ApiError) -> None:
        """End the request with an error, after what came before it."""
        self._error = error
        self._changed.set()
