"""Who computes what in the next step: pure, without a clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kserve_llamacpp.engine.sequence import Sequence, State


@dataclass(frozen=True)
class Limits:
    """What a step and the KV cache hold, in tokens, cells and sequences."""

    num_cells: int
    max_sequences: int
    step_tokens: int
    prefill_tokens_beside_decode: int


@dataclass(frozen=True)
class Chunk:
    """The next `count` tokens of one sequence, to be computed in this step."""

    sequence: Sequence
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the chunk reaches the sequence's last token, so that one can be drawn."""
        return self.count == self.sequence.num_pending


class Scheduler:
    """Owns the queue, the slots and the count of cells.

    Decode first: every decoding sequence gets its token in every step; what is left of the budget
    goes to prompts, in order of arrival. When cells run out, the youngest sequence goes back to
    the head of the queue with its tokens.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
        self._free_slots = list(range(limits.max_sequences))[::-1]
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        """How many sequences wait for a slot or for cells."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """How many sequences have a slot."""
        return len(self._running)

    @property
    def num_cells_used(self) -> int:
        """How many cells of the KV cache hold a token."""
        return sum(sequence.num_computed for sequence in self._running)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the queue."""
        self._waiting.append(sequence)

    def schedule(self) -> tuple[list[Chunk], list[Sequence]]:
        """Choose the next step's chunks; also return the sequences that were preempted for them.

        A preempted sequence has given back its slot: its cells must be dropped by the caller,
        who finds the slot in `sequence.slot` until it calls `requeue`.
        """
        preempted = self._make_room_for_decode()
        if not preempted:
            self._admit()
        chunks = [Chunk(s, 1) for s in self._running if s.is_decoding]
        budget = self.limits.step_tokens - len(chunks)
        if chunks:
            budget = min(budget, self.limits.prefill_tokens_beside_decode)
        free = self.limits.num_cells - self.num_cells_used - len(chunks)
        for sequence in self._running:
            count = min(budget, free, sequence.num_pending)
            if sequence.is_decoding or count <= 0:
                continue
            chunks.append(Chunk(sequence, count))
            budget -= count
            free -= count
        return chunks, preempted

    def preempt_youngest(self) -> Sequence | None:
        """Take the youngest running sequence out, unless it is the only one."""
        if len(self._running) < 2:
            return None
        self.num_preemptions += 1
        return self._running.pop()

    def requeue(self, sequence: Sequence) -> None:
        """Put a preempted sequence, whose cells were dropped, at the head of the queue."""
        self._give_back_slot(sequence)
        sequence.num_computed = 0
        sequence.state = State.WAITING
        self._waiting.appendleft(sequence)

    def computed(self, chunk: Chunk) -> None:
        """Take note that a chunk is in the KV cache."""
        chunk.sequence.num_computed += chunk.count

    def finish(self, sequence: Sequence) -> int | None:
        """Take a sequence out for good; return the slot whose cells must be dropped, if it had."""
        if sequence.state is State.WAITING:
            self._waiting.remove(sequence)
        elif sequence.state is State.RUNNING:
            self._running.remove(sequence)
        slot = sequence.slot
        self._give_back_slot(sequence)
        sequence.num_computed = 0
        sequence.state = State.FINISHED
        return slot

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot and cell is accounted for exactly once."""
        used = [s.slot for s in self._running]
        assert None not in used
        assert sorted([*self._free_slots, *(slot for slot in used if slot is not None)]) == list(
            range(self.limits.max_sequences)
        )
        assert 0 <= self.num_cells_used <= self.limits.num_cells
        assert all(s.state is State.RUNNING for s in self._running)
        assert all(s.num_computed < len(s.tokens) for s in self._running)
        for s in self._waiting:
            assert s.state is State.WAITING
            assert s.slot is None
            assert s.num_computed == 0

    def _make_room_for_decode(self) -> list[Sequence]:
        """Preempt the youngest until every decoding sequence has a cell for its next token."""
        preempted = []
        while (
            self.num_cells_used + sum(s.is_decoding for s in self._running) > self.limits.num_cells
        ):
            youngest = self.preempt_youngest()
            if youngest is None:
                break  # one sequence alone always fits: the engine bounds its length
            preempted.append(youngest)
        return preempted

    def _admit(self) -> None:
        """Give slots to waiting sequences, as long as their tokens and one more fit beside others.

        What running prompts will still take is counted as taken, or two half-filled prompts could
        block each other.
        """
        taken = sum(len(s.tokens) + 1 for s in self._running)
        while self._waiting and self._free_slots:
            need = len(self._waiting[0].tokens) + 1
            if self._running and taken + need > self.limits.num_cells:
                break
            sequence = self._waiting.popleft()
            sequence.slot = self._free_slots.pop()
            sequence.state = State.RUNNING
            self._running.append(sequence)
            taken += need

    def _give_back_slot(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._free_slots.append(sequence.slot)
            sequence.slot = None
