"""How much may wait, and who gives way when the queue is full: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kserve_llamacpp.engine.generation import Generation, Request

_CHARACTERS_PER_TOKEN = 4  # of a text that was not tokenized yet


@dataclass(frozen=True)
class QueueLimits:
    """How many requests may wait, with how many tokens (0: any), and how long (0: for ever)."""

    max_waiting: int
    max_waiting_tokens: int = 0
    timeout_seconds: float = 0.0

    def holds_one_more(self, num_active: int, num_waiting: int, num_slots: int) -> bool:
        """Whether one more request may come, beside those that have, or will get, a slot."""
        return num_active < self.max_waiting + num_slots or num_waiting < self.max_waiting

    def holds_tokens(self, waiting: Sequence[Generation], newcomer: Request) -> bool:
        """Whether a request's prompt may wait beside others'; alone it may, whatever its length."""
        if not self.max_waiting_tokens or not waiting:
            return True
        num_tokens = sum(num_prompt_tokens(generation.request) for generation in waiting)
        return num_tokens + num_prompt_tokens(newcomer) <= self.max_waiting_tokens


def num_prompt_tokens(request: Request) -> int:
    """Return the length of a prompt, estimated where it is a text."""
    if isinstance(request.prompt, str):
        return -(-len(request.prompt) // _CHARACTERS_PER_TOKEN)
    return len(request.prompt)


def gives_way(waiting: Sequence[Generation], tenant: str) -> Generation | None:
    """Return who gives way to a request of this tenant, None where nobody does.

    It is the last, and least urgent, of the tenant with the most waiting, if this one would still
    have fewer: so a tenant that fills the queue cannot keep the others out of it.
    """
    counts = Counter(generation.request.tenant for generation in waiting)
    longest = max(counts, key=lambda name: counts[name], default=tenant)
    if counts[longest] <= counts[tenant] + 1:
        return None
    own = [generation for generation in waiting if generation.request.tenant == longest]
    return max(own, key=lambda g: (g.request.priority, g.id))
