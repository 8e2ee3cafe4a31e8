"""Who computes what in the next step: pure, without a clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from kserve_llamacpp.engine.cache.memory import MIN_SHARED, KVCache, shared_length
from kserve_llamacpp.engine.schedule.fair_queue import FairQueue
from kserve_llamacpp.engine.schedule.slots import Slots
from kserve_llamacpp.engine.sequence import Sequence, State

_LOOKAHEAD = 64  # waiting sequences that are looked at, where some wait for another's prefix
_HEAD_START = 256  # tokens of a prompt: about what fits into a few steps beside decode


@dataclass(frozen=True)
class Chunk:
    """The next `count` tokens of one sequence, to be computed in this step."""

    sequence: Sequence
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the chunk reaches the sequence's last token, so that one can be drawn."""
        return self.count == self.sequence.num_pending


@dataclass(frozen=True)
class Plan:
    """What one step computes: a token of each decoding sequence, and parts of prompts."""

    decode: list[Chunk] = field(default_factory=list)
    prefill: list[Chunk] = field(default_factory=list)


class Scheduler:
    """Owns the queue, the slots and the KV cache.

    Decode first: every decoding sequence gets its token in every step; the rest of the step goes
    to prompts, one after another, the one with the least left first, unless it has overtaken
    another by as much as that one has left. When cells run out, first what nobody uses is evicted,
    then the youngest sequence of the tenant that was served most goes back to the queue with its
    tokens.

    Slots may have cells of their own: then only sequences that are too long for these share the
    others, and one that outgrows its own moves there.
    """

    def __init__(
        self,
        max_sequences: int,
        cache: KVCache,
        queue: FairQueue[Sequence],
        is_uniform: bool = False,
        own_length: int = 0,
    ) -> None:
        """`own_length`: how many cells a slot has to itself; 0: all cells are the cache's to share.

        `is_uniform`: a sequence is always computed in the same parts, also when it comes again.
        Its prompt in parts of the same size, then what it generated, token by token.
        """
        self.cache = cache
        self._is_uniform = is_uniform
        self._max_sequences = max_sequences
        self._waiting = queue
        self._running: list[Sequence] = []  # oldest first
        self._slots = Slots(max_sequences, own_length)
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
    def num_decoding(self) -> int:
        """How many sequences compute just the token that was drawn last."""
        return sum(sequence.is_decoding for sequence in self._running)

    @property
    def num_cells(self) -> int:
        """How many cells there are, shared or a slot's own."""
        return self.cache.num_cells + self._slots.num_own_cells

    @property
    def num_cells_used(self) -> int:
        """How many cells running sequences use, shared ones counted once."""
        return self.cache.num_locked + sum(s.num_computed - s.num_shared for s in self._running)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence into the queue."""
        self._waiting.add(sequence)

    def schedule(self, prefill_tokens: int) -> Plan:
        """Choose the next step's chunks, at most so many tokens of prompts."""
        if not self._make_room_for_decode():
            self._admit()
            self._make_room_for_decode()  # who begins with all of its prompt known decodes at once
        return Plan(
            decode=[Chunk(s, 1) for s in self._running if s.is_decoding],
            prefill=self._prefill(prefill_tokens),
        )

    def preempt(self) -> Sequence | None:
        """Put one of those that share cells back into the queue, unless it is alone; return it."""
        pooled = self._pooled
        if len(pooled) < 2:
            return None
        tenant = self._waiting.best_served({s.tenant for s in pooled})
        return self._preempt_youngest_of(tenant, pooled)

    def computed(self, chunk: Chunk) -> None:
        """Take note that a chunk is in the KV cache."""
        sequence = chunk.sequence
        if sequence.is_decoding:
            self._waiting.charge(sequence.tenant, generated_tokens=1)
        else:
            self._waiting.charge(sequence.tenant, prompt_tokens=chunk.count)
            sequence.num_charged += chunk.count
            for other in self._running:
                if other is not sequence and not other.is_decoding:
                    other.num_overtaken += chunk.count
        sequence.num_computed += chunk.count

    def finish(self, sequence: Sequence, keep: bool = True) -> None:
        """Take a sequence out for good; with `keep`, what it computed stays known to others."""
        if sequence.state is State.WAITING:
            self._waiting.remove(sequence)
        elif sequence.state is State.RUNNING:
            self._give_back_slot(sequence, keep)
            self._running.remove(sequence)
        sequence.state = State.FINISHED

    def roll_back(self, sequence: Sequence) -> bool:
        """Take out what a failed batch may have left of a sequence; whether it can go on at once.

        Where its memory cannot be cut, the sequence begins again from the queue.
        """
        if sequence.state is not State.RUNNING:
            return False
        if self.cache.roll_back(sequence):
            return True
        self._preempt(sequence, keep=False)
        sequence.num_failures += 1
        return False

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot and cell is accounted for exactly once."""
        used = [s.slot for s in self._running if s.slot is not None]
        assert len(used) == len(self._running)
        assert len(used) <= self._max_sequences
        self._slots.check_integrity(used)
        assert self._num_free_cells >= 0
        for s in self._running:
            assert self._is_pooled(s) or self._slots.fits(s.num_computed)
        assert all(s.state is State.RUNNING for s in self._running)
        assert all(s.num_computed < len(s.tokens) for s in self._running)
        for s in self._waiting:
            assert s.state is State.WAITING
            assert s.slot is None
            assert s.num_computed == s.num_shared == 0
        self._waiting.check_integrity()
        self.cache.check_integrity(self._running)

    # -- room ------------------------------------------------------------------------------------

    def _is_pooled(self, sequence: Sequence) -> bool:
        assert sequence.slot is not None
        return self._slots.is_pooled(sequence.slot)

    @property
    def _pooled(self) -> list[Sequence]:
        """The running sequences that share cells, oldest first."""
        return [s for s in self._running if self._is_pooled(s)]

    @property
    def _num_free_cells(self) -> int:
        """How many of the cells that are shared are nobody's."""
        cache = self.cache
        used = sum(s.num_computed - s.num_shared for s in self._pooled)
        return cache.num_cells - cache.num_locked - cache.num_parked - used

    @property
    def _num_spare_cells(self) -> int:
        """How many of them are left when all that decode have their next token."""
        return self._num_free_cells - sum(s.is_decoding for s in self._pooled)

    def _make_room_for_decode(self) -> bool:
        """Evict, then preempt, until each decoding sequence has a cell; whether it came to that."""
        has_preempted = self._move_outgrown()
        while (missing := -self._num_spare_cells) > 0:
            if self.cache.evict(missing) > 0:
                continue
            if self.preempt() is None:
                break  # one sequence alone always fits: the engine bounds its length
            has_preempted = True
        return has_preempted

    def _move_outgrown(self) -> bool:
        """Move who is longer than its slot's own cells to the shared ones; whether any must wait.

        Where there are too few, it goes back to the queue.
        """
        has_preempted = False
        for sequence in list(self._running):
            own = sequence.slot
            assert own is not None
            if self._slots.is_pooled(own) or self._slots.fits(len(sequence.tokens)):
                continue
            if self._fits_into_pool(sequence):
                slot = self._slots.take(is_pooled=True)
                if self.cache.move(sequence, slot):
                    self._slots.give_back(own)
                    continue
                self._slots.give_back(slot)
            self._preempt(sequence)
            has_preempted = True
        return has_preempted

    def _preempt(self, sequence: Sequence, keep: bool = True) -> None:
        self.num_preemptions += 1
        self._give_back_slot(sequence, keep)
        self._running.remove(sequence)
        sequence.state = State.WAITING
        self._waiting.add_front(sequence)

    def _preempt_youngest_of(self, tenant: str | None, among: list[Sequence]) -> Sequence:
        victim = [s for s in among if s.tenant == tenant][-1]
        self._preempt(victim)
        return victim

    def _give_back_slot(self, sequence: Sequence, keep: bool) -> None:
        assert sequence.slot is not None
        self.cache.leave(sequence, keep, self._num_free_cells)
        self._slots.give_back(sequence.slot)
        sequence.slot = None

    # -- admission -------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let those start that wait, as long as their tokens and one more fit beside others.

        What running prompts will still take is counted as taken, or two half-filled prompts could
        block each other. Who waits for another's prefix is passed over, and so is, by those that
        fit into a slot's own cells, who waits for shared ones: by as many tokens as it has itself,
        for they may outgrow their cells and take what it waits for.
        """
        if not self._waiting:
            return
        self._free_a_slot()
        blocked: Sequence | None = None  # the first that waits for shared cells
        num_tried = 0
        for sequence in list(self._waiting):
            if self._is_full or num_tried >= _LOOKAHEAD:
                return
            if blocked is not None:
                if blocked.num_overtaken >= len(blocked.tokens):
                    return
                if not self._slots.fits(len(sequence.tokens) + 1):
                    continue
            num_tried += 1
            if self._waits_for_another(sequence):
                continue
            slot = self._take_slot(sequence, may_share=blocked is None)
            if slot is not None:
                self._waiting.remove(sequence)
                self._start(sequence, slot)
                if blocked is not None:
                    blocked.num_overtaken += len(sequence.tokens)
            elif self._slots.own_length == 0:
                return
            else:
                blocked = sequence

    @property
    def _is_full(self) -> bool:
        return len(self._running) >= self._max_sequences

    def _take_slot(self, sequence: Sequence, may_share: bool) -> int | None:
        """Return a slot that has cells for a sequence, and is taken now; None: it must wait."""
        slots, length = self._slots, len(sequence.tokens) + 1
        if slots.fits(length) and slots.fits(self.cache.known(sequence).to_restore):
            return slots.take(is_pooled=False)
        if may_share and self._fits_into_pool(sequence):
            return slots.take(is_pooled=True)
        if slots.fits(length):  # what is known of it does not
            return slots.take(is_pooled=False)
        return None

    def _fits_into_pool(self, sequence: Sequence) -> bool:
        return not self._pooled or self._num_planned_cells(sequence) <= self.cache.num_cells

    def _free_a_slot(self) -> None:
        """Preempt for a tenant that has nothing running, from one that has several.

        Where it needs shared cells that others have, one of those gives way, if there is any.
        """
        head = self._waiting.head()
        tenants = [s.tenant for s in self._running]
        if not self._is_full or head is None or head.tenant in tenants:
            return
        richest = self._waiting.best_served(tenants)
        if richest is None or tenants.count(richest) < 2 or self._waits_for_another(head):
            return
        among = self._running
        needs_pool = self._slots.own_length > 0 and not self._slots.fits(len(head.tokens) + 1)
        if needs_pool and not self._fits_into_pool(head):
            among = self._pooled
        if any(s.tenant == richest for s in among):
            self._preempt_youngest_of(richest, among)

    def _start(self, sequence: Sequence, slot: int) -> None:
        sequence.slot = slot
        sequence.state = State.RUNNING
        sequence.num_charged = 0
        is_pooled = self._slots.is_pooled(slot)
        num_free = self._num_free_cells if is_pooled else self._slots.own_length
        num_own = self.cache.admit(sequence, num_free)
        self._running.append(sequence)
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            sequence.num_own_cached = num_own
            self.cache.stats.queries += len(sequence.tokens)
            self.cache.stats.hits += sequence.num_computed

    def _num_planned_cells(self, sequence: Sequence) -> int:
        """Return how many shared cells are taken when all of them, and it, have their tokens."""
        running = sum(len(s.tokens) + 1 - s.num_shared for s in self._pooled)
        own = len(sequence.tokens) + 1 - self.cache.known(sequence).in_use
        return self.cache.num_locked + running + own

    def _waits_for_another(self, sequence: Sequence) -> bool:
        """Whether a running sequence is computing what this one begins with.

        Where it has been computed, it is made known.
        """
        if not self.cache.can_publish:
            return False
        limit = len(sequence.tokens) - 1
        known = self.cache.known(sequence).length
        for other in self._running:
            if other.num_shared > known:
                continue
            length = shared_length(other, sequence, limit)
            if length < known + MIN_SHARED:
                continue
            if other.num_computed < length:
                return True
            self.cache.publish(other, length, self._num_free_cells)
            known = self.cache.known(sequence).length
        return False

    # -- prefill ---------------------------------------------------------------------------------

    def _prefill(self, budget: int) -> list[Chunk]:
        """Share a step's tokens among prompts: the least served tenant's first, the shorter first.

        Among tenants that were served alike, the one with the shortest prompt goes first. A prompt
        is overtaken by at most as many tokens as it has itself, and then goes first in its tenant.
        """
        waiting = [s for s in self._running if not s.is_decoding]
        if not waiting:
            return []
        rank = self._prefill_ranks(waiting)
        waiting.sort(key=lambda s: (rank[s.tenant], s.tenant, s.num_pending - s.num_overtaken))
        free = self._num_spare_cells
        chunks = []
        for sequence in waiting:
            count = min(budget, sequence.num_pending)
            if self._is_uniform:
                count = min(count, max(1, sequence.num_prompt - sequence.num_computed))
            if self._is_pooled(sequence):
                if count > free:
                    free += self.cache.evict(count - free)
                    count = min(count, free)
                free -= max(0, count)
            if count <= 0:
                continue
            chunks.append(Chunk(sequence, count))
            budget -= count
        return chunks

    def _prefill_ranks(self, waiting: list[Sequence]) -> dict[str, tuple[float, bool, int]]:
        """Return of each tenant with prompts: its service, whether it decodes, its shortest prompt.

        The first tokens of a prompt do not count as service while its tenant gets no tokens: they
        would put the next ones behind the prompts of tenants that do. Tenants that get none and
        differ by no more than that were served alike: else a short prompt would wait until the
        first tokens of another tenant's long one are computed.
        """
        decoding = {s.tenant for s in self._running if s.is_decoding}
        shortest: dict[str, int] = {}
        head_start: dict[str, int] = {}
        for s in waiting:
            shortest[s.tenant] = min(s.num_pending, shortest.get(s.tenant, s.num_pending))
            head_start[s.tenant] = max(s.num_charged, head_start.get(s.tenant, 0))
        service = {tenant: self._waiting.service(tenant) for tenant in shortest}
        newcomers = shortest.keys() - decoding
        least = min((service[t] - self._head_start(head_start[t]) for t in newcomers), default=0.0)
        for t in newcomers:
            is_alike = service[t] - self._head_start(_HEAD_START) <= least
            service[t] = least if is_alike else service[t] - self._head_start(head_start[t])
        return {t: (service[t], t in decoding, shortest[t]) for t in shortest}

    def _head_start(self, num_tokens: int) -> float:
        return self._waiting.cost(prompt_tokens=min(_HEAD_START, num_tokens))
