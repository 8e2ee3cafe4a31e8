"""How much is asked for: enough for figures, or just enough to see that all of it works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Rounds, numbers of clients and requests, lengths in words and tokens."""

    rounds: int = 5
    clients: tuple[int, ...] = (1, 4, 8, 16)
    requests: int = 8
    max_tokens: int = 64
    prompt_words: int = 100
    prefix_words: int = 400
    long_words: int = 1500
    users: int = 8
    turns: int = 6
    crowd: int = 16
    lone_requests: int = 100
    churn_prompts: int = 400
    decode_steps: int = 64
    layout_steps: int = 3
    contexts: tuple[int, ...] = (150, 900)

    @property
    def lone_requests_a_round(self) -> int:
        """The lone tenant's requests in each round; all rounds have at least `lone_requests`."""
        return -(-self.lone_requests // self.rounds)


QUICK = Sizes(
    rounds=1,
    clients=(1, 4),
    requests=4,
    max_tokens=16,
    users=2,
    turns=3,
    crowd=4,
    lone_requests=4,
    churn_prompts=8,
    decode_steps=16,
    layout_steps=2,
    contexts=(50, 150),
)
