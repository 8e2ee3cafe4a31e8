"""Which requests there are, and which wait for an engine or for a suspect's end: pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from kserve_llamacpp.engine.generation import Generation

_SUSPECT_DEATHS = 2  # so many engines in a row died under a request: it is tried once alone


class Dispatcher:
    """Owns every request that has not ended, and says when each is submitted; owner: the client.

    Invariants: what is held is among them, in the order in which it came; where there is a suspect
    the engine has nothing else.
    """

    def __init__(self) -> None:
        self._active: dict[int, Generation] = {}
        self._held: deque[Generation] = deque()
        self._suspect: Generation | None = None

    def __len__(self) -> int:
        return len(self._active)

    def __iter__(self) -> Iterator[Generation]:
        return iter(list(self._active.values()))

    @property
    def waiting(self) -> list[Generation]:
        """Those that have not started, held or in the engine's queue."""
        return [g for g in self._active.values() if g.prompt_tokens is None]

    def find(self, id: int) -> Generation | None:
        """Return a request that has not ended."""
        return self._active.get(id)

    def add(self, generations: Sequence[Generation]) -> None:
        """Take new requests, and hold them until `next_to_submit`."""
        self._active.update((generation.id, generation) for generation in generations)
        self._held.extend(generations)

    def remove(self, generation: Generation) -> bool:
        """Forget a request; whether it had been submitted."""
        del self._active[generation.id]
        if self._suspect is generation:
            self._suspect = None
        if generation not in self._held:
            return True
        self._held.remove(generation)
        return False

    def next_to_submit(self) -> list[Generation]:
        """Return what the engine gets now; while a suspect runs, it runs alone."""
        if self._suspect is not None:
            return []
        suspects = [g for g in self._held if g.num_deaths >= _SUSPECT_DEATHS]
        if not suspects:
            ready = list(self._held)
            self._held.clear()
            return ready
        if len(self._active) > len(self._held):  # others run
            return []
        self._suspect = suspects[0]
        self._held.remove(self._suspect)
        return [self._suspect]

    def hold_all(self) -> list[Generation]:
        """After an engine's death: hold everything for the next; return those that are guilty."""
        self._suspect = None
        waiting_before = set(self._held)
        for generation in self._active.values():
            if generation not in waiting_before:
                generation.num_deaths += 1
        guilty = [g for g in self._active.values() if g.num_deaths > _SUSPECT_DEATHS]
        if guilty:  # it explains the deaths before: the others need not run alone one by one
            for generation in self._active.values():
                if generation not in guilty:
                    generation.num_deaths = min(generation.num_deaths, 1)
        self._held = deque(self._active.values())
        return guilty
