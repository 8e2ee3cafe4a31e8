"""Which requests there are, and which wait for an engine or for a suspect's trial: pure.

Whose fault is an engine's death? A request is a suspect when two engines in a row have died while
they had it and gave it no token. Suspects are tried one after another: who gets a token, or ends,
is a suspect no more, and the next one joins it. If the engine dies, the one on trial is tried first
in the next engine, alone. It is guilty, and fails, if an engine dies that has had nothing else.

After a guilty one others like it may come. For a minute the dispatcher is careful: requests that
have had a token run together, and each new one is on trial; after a death, new ones wait until the
others have run for as long as was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kserve_llamacpp.engine_client.generation import Generation

_SUSPECT_DEATHS = 2  # so many engines in a row died under a request: it is tried alone
CAREFUL_SECONDS = 60.0
_MAX_CALM_SECONDS = 60.0


class Dispatcher:
    """Owns every request that has not ended, and says when each is submitted; owner: the client.

    Invariants: what is held is among them, in the order in which it came; one request at most is
    on trial, and until it has a token the engine gets nothing else.
    """

    def __init__(self, num_guilty_of: Callable[[str, float], int] = lambda _, __: 0) -> None:
        """`num_guilty_of` tells how many guilty requests a tenant had lately: it comes last."""
        self._num_guilty_of = num_guilty_of
        self._active: dict[int, Generation] = {}
        self._held: dict[int, Generation] = {}
        self._tried: Generation | None = None  # the one on trial
        self._num_given = 0  # how many requests this engine has got
        self._careful_until = float("-inf")
        self._calm_until = float("-inf")
        self._progress_at = float("-inf")  # when a request last got a token
        self._given_at = float("-inf")  # when the engine last got a request
        self._lost_since: float | None = None  # from when on the dead engines gave nothing

    def __len__(self) -> int:
        return len(self._active)

    def __iter__(self) -> Iterator[Generation]:
        return iter(list(self._active.values()))

    @property
    def waiting(self) -> list[Generation]:
        """Those that have not started, held or in the engine's queue."""
        return [g for g in self._active.values() if g.prompt_tokens is None]

    @property
    def num_submitted(self) -> int:
        """How many requests the engine has."""
        return len(self._active) - len(self._held)

    def is_careful(self, now: float) -> bool:
        """Whether a request was found guilty in the last minute."""
        return now < self._careful_until

    def find(self, id: int) -> Generation | None:
        """Return a request that has not ended."""
        return self._active.get(id)

    def add(self, generations: Sequence[Generation]) -> None:
        """Take new requests, and hold them until `next_to_submit`."""
        new = {generation.id: generation for generation in generations}
        self._active.update(new)
        self._held.update(new)

    def remove(self, generation: Generation) -> bool:
        """Forget a request; whether it had been submitted."""
        del self._active[generation.id]
        if self._tried is generation:
            self._tried = None
        return self._held.pop(generation.id, None) is None

    def progressed(self, generation: Generation, now: float) -> bool:
        """Note that a request got a token; whether a trial has ended with it."""
        self._progress_at = now
        self._lost_since = None
        generation.is_proven = True
        generation.clear()
        if self._tried is not generation:
            return False
        self._tried = None
        for other in generation.group.generations:  # the same prompt: it is as harmless
            other.clear()
        return True

    def engine_ready(self, now: float) -> None:
        """Note that an engine takes requests from now on."""
        if self._lost_since is not None:
            self._calm_until = now + min(now - self._lost_since, _MAX_CALM_SECONDS)

    def next_to_submit(self, now: float) -> list[Generation]:
        """Return what the engine gets now; while a request is on trial, nothing."""
        if self._tried is not None:
            return []
        suspects = [g for g in self._held.values() if g.is_suspect]
        if suspects:
            prime = next((g for g in suspects if g.is_prime_suspect), None)
            self._tried = prime or suspects[0]
            return self._release([self._tried], now)
        if not self.is_careful(now):
            return self._release(list(self._held.values()), now)
        proven = [g for g in self._held.values() if g.is_proven]
        self._tried = self._next_unproven(now)
        return self._release([*proven, *([] if self._tried is None else [self._tried])], now)

    def _next_unproven(self, now: float) -> Generation | None:
        """Return the request that may join the proven ones, while the dispatcher is careful."""
        if now < self._calm_until and any(g.is_proven for g in self._active.values()):
            return None
        unproven = [g for g in self._held.values() if not g.is_proven]
        tenants = {g.request.tenant for g in unproven}
        num_guilty = {tenant: self._num_guilty_of(tenant, now) for tenant in tenants}
        return min(unproven, key=lambda g: num_guilty[g.request.tenant], default=None)

    def _submitted(self) -> list[Generation]:
        return [g for g in self._active.values() if g.id not in self._held]

    def _release(self, generations: list[Generation], now: float) -> list[Generation]:
        if generations:
            self._given_at = now
        self._num_given += len(generations)
        for generation in generations:
            del self._held[generation.id]
        return generations

    def hold_all(self, now: float) -> Generation | None:
        """After an engine's death: hold everything for the next; return who is guilty, if known.

        Its deaths explain those of the others; its whole group is guilty, which has its prompt.
        """
        tried, self._tried = self._tried, None
        submitted = self._submitted()
        is_guilty = tried is not None and tried.is_suspect and self._num_given == 1
        self._num_given = 0
        if submitted and self._lost_since is None:
            self._lost_since = max(self._progress_at, self._given_at)
        for generation in submitted:
            generation.num_deaths += 1
            generation.is_suspect = generation.num_deaths >= _SUSPECT_DEATHS
        self._held = dict(self._active)
        if tried is not None:
            tried.is_suspect = tried.is_prime_suspect = True
        if not is_guilty:
            return None
        self._careful_until = now + CAREFUL_SECONDS
        for generation in self._active.values():
            if generation is not tried:
                generation.num_deaths = min(generation.num_deaths, _SUSPECT_DEATHS - 1)
                generation.is_suspect = generation.is_prime_suspect = False
        return tried
