"""How much may wait, and who gives way when the queue is full: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kserve_llamacpp.engine_client.generation import Generation, Group, Request

_CHARACTERS_PER_TOKEN = 4  # of a text that was not tokenized yet


@dataclass(frozen=True)
class QueueLimits:
    """How many choices may wait, with how many tokens (0: any), and how long (0: for ever)."""

    max_waiting: int
    max_waiting_tokens: int = 0
    timeout_seconds: float = 0.0

    def num_too_many(self, num_active: int, num_waiting: int, num_new: int, num_slots: int) -> int:
        """Return how many must leave the queue so that so many new ones may come.

        Nobody is counted who has, or will get, a slot.
        """
        without_slot = num_active + num_new - num_slots
        return max(0, min(without_slot, num_waiting + num_new) - self.max_waiting)

    def holds_tokens(self, waiting: Sequence[Generation], newcomers: Sequence[Request]) -> bool:
        """Whether a request's prompts may wait beside others'; alone they may, however long."""
        if not self.max_waiting_tokens or not waiting:
            return True
        requests = [*(generation.request for generation in waiting), *newcomers]
        return sum(map(_num_prompt_tokens, requests)) <= self.max_waiting_tokens


def _num_prompt_tokens(request: Request) -> int:
    """Return the length of a prompt, estimated where it is a text, for its first choice."""
    if request.sampling.choice > 0:
        return 0
    if isinstance(request.prompt, str):
        return -(-len(request.prompt) // _CHARACTERS_PER_TOKEN)
    return len(request.prompt)


def gives_way(
    waiting: Sequence[Generation], newcomers: Sequence[Request], num_too_many: int
) -> list[Group]:
    """Return who gives way to a request, so that as many leave as must; nobody if that many do not.

    It is the last, and least urgent, request of the tenant with the most waiting, if this one would
    still have fewer: so a tenant that fills the queue cannot keep the others out of it. Of a
    request that has begun nothing gives way.
    """
    counts = Counter(generation.request.tenant for generation in waiting)
    most = counts[newcomers[0].tenant] + len(newcomers)
    sizes = Counter(g.group for g in waiting if not g.group.has_begun)
    leaving: list[Group] = []
    while num_too_many > 0:
        longest = max(
            (group.tenant for group in sizes), key=lambda name: counts[name], default=None
        )
        if longest is None or counts[longest] <= most:
            return []
        own = [group for group in sizes if group.tenant == longest]
        leaving.append(max(own, key=lambda group: group.urgency))
        size = sizes.pop(leaving[-1])
        counts[longest] -= size
        num_too_many -= size
    return leaving
