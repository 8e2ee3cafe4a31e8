"""Two rooms as one: slots that have cells of their own, and slots that share a pool."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kserve_llamacpp.engine.backend import DecodeFailed, KVCacheFull, Row
from kserve_llamacpp.engine.cache.memory import Memory
from kserve_llamacpp.engine.llama import streams
from kserve_llamacpp.engine.llama.context import Room


class TwoRooms:
    """Two rooms, the slots of the second behind those of the first; owner: the backend."""

    def __init__(self, first: Room, second: Room) -> None:
        self._rooms = (first, second)
        self.memory: Memory = _MemoryOfTwo(first, second)
        self._places: list[tuple[Room, int]] = []

    def decode(self, rows: list[Row]) -> None:
        """Compute a batch, all or nothing; raises KVCacheFull or DecodeFailed."""
        first, second = self._rooms
        mine: list[Row] = []
        behind: list[Row] = []
        self._places = []
        for row in rows:
            if row.slot < first.num_slots:
                self._places.append((first, len(mine)))
                mine.append(row)
            else:
                self._places.append((second, len(behind)))
                behind.append(replace(row, slot=row.slot - first.num_slots))
        if mine:
            first.decode(mine)
        if behind:
            try:
                second.decode(behind)
            except (KVCacheFull, DecodeFailed):
                self._take_back(mine)
                raise

    def logits(self, row: int) -> Any:
        """Return a pointer to the logits of an output row of the batch computed last."""
        room, place = self._places[row]
        return room.logits(place)

    def synchronize(self) -> None:
        """Wait until the batch is computed."""
        for room in self._rooms:
            room.synchronize()

    def _take_back(self, rows: list[Row]) -> None:
        """Take out of the first room what was computed there."""
        starts: dict[int, int] = {}
        for row in rows:
            starts.setdefault(row.slot, row.position)
        for slot, start in starts.items():
            self._rooms[0].memory.cut(slot, start)


class _MemoryOfTwo:
    """A `Memory` over two rooms, the ids of the second behind those of the first."""

    def __init__(self, first: Room, second: Room) -> None:
        self._rooms = (first, second)
        self._most_streams = max(first.num_streams, second.num_streams)
        # no id only holds cells
        self.num_ids = self.first_holder = first.num_slots + second.num_slots

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` own the cells of `source`, in the same room, from `start` to `end`, too."""
        room, inside = self._of(source)
        other, target_inside = self._of(target)
        assert room is other
        room.memory.share(inside, target_inside, start, end)

    def cut(self, id: int, start: int, end: int | None = None) -> None:
        """Take cells from a sequence, from `start` to before `end`; None: to its last one."""
        room, inside = self._of(id)
        room.memory.cut(inside, start, end)

    def drop(self, id: int) -> None:
        """Take all cells from a sequence."""
        room, inside = self._of(id)
        room.memory.drop(inside)

    def holds(self, id: int, length: int) -> bool:
        """Whether a sequence has every cell that computing on from its first `length` needs."""
        room, inside = self._of(id)
        return room.memory.holds(inside, length)

    def size(self, id: int) -> int:
        """Return how many bytes a copy of a sequence's cells takes, at most."""
        room, inside = self._of(id)
        return room.memory.size(inside) + streams.most_added(self._most_streams)

    def save(self, id: int) -> bytearray | None:
        """Copy a sequence's cells to host memory; None when that fails."""
        room, inside = self._of(id)
        state = room.memory.save(inside)
        if state is None or not streams.put_first(state, room.num_streams, self._most_streams):
            return None
        return state

    def restore(self, id: int, state: bytearray) -> bool:
        """Give a sequence the cells that were saved, also in the other room; False: no room."""
        room, inside = self._of(id)
        streams.read_as(state, room.num_streams)
        return room.memory.restore(inside, state)

    def clear(self) -> None:
        """Forget everything."""
        for room in self._rooms:
            room.memory.clear()

    def _of(self, id: int) -> tuple[Room, int]:
        first, second = self._rooms
        return (first, id) if id < first.num_slots else (second, id - first.num_slots)
