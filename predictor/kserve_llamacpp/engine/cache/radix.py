"""A radix tree over token ids: whose prefixes are in memory, on the device or on the host.

A node is a span of tokens of one salt at a place in a text; siblings are told apart by salt and
first token, so that two sequences share a node only where both agree. Its cells on the device are
owned by a sequence id of its own, its holder; a running sequence shares the cells of the nodes on
its path and owns those behind them. What nobody uses stays parked on the device as long as that is
cheaper than bringing it back: a step walks parked cells, too. Then it goes to the host, if there is
room.
"""

from __future__ import annotations

from collections import OrderedDict

from kserve_llamacpp.engine.cache.costs import Costs
from kserve_llamacpp.engine.cache.host_tier import HostTier
from kserve_llamacpp.engine.cache.memory import (
    MIN_SHARED,
    CacheStats,
    Known,
    Memory,
)
from kserve_llamacpp.engine.cache.node import Node, end_of_salt, key_at
from kserve_llamacpp.engine.cache.owners import Owners
from kserve_llamacpp.engine.sequence import Sequence


class RadixCache:
    """A `KVCache` for memories whose cells can be shared and cut; owner: the scheduler.

    Invariants: siblings differ in their salt or first token; a node on the device has its parent
    there, too; users of a node use its parent; every cell on the device belongs to one node or to
    one running sequence.
    """

    def __init__(
        self,
        memory: Memory,
        num_cells: int,
        costs: Costs,
        host_bytes: int,
        can_save: bool = True,
    ) -> None:
        """`host_bytes` bounds the host tier; `can_save` tells whether spans can be moved there."""
        self.num_cells = num_cells
        self.can_publish = True
        self.stats = CacheStats()
        self._memory = memory
        self._free_holders = list(range(memory.first_holder, memory.num_ids))[::-1]
        self._host = HostTier(host_bytes if can_save else 0)
        self._rows_worth_parking = costs.rows_worth_parking(self._host.max_bytes > 0)
        self._root = Node([], 0, None)
        self._owners: Owners[Node] = Owners()
        self._last_nodes: dict[int, Node] = {}  # of running sequences, by slot
        self._parked: OrderedDict[Node, None] = OrderedDict()  # parked longest first
        self._num_locked = 0
        self._num_parked = 0
        self._rows = 0.0

    @property
    def num_locked(self) -> int:
        """How many of the cache's cells running sequences use."""
        return self._num_locked

    @property
    def num_parked(self) -> int:
        """How many of the cache's cells nobody uses: they can be evicted."""
        return self._num_parked

    @property
    def host_bytes(self) -> int:
        """How much the host tier holds."""
        return self._host.num_bytes

    def known(self, sequence: Sequence) -> Known:
        """Return how many of a waiting sequence's tokens need not be computed."""
        path, length = self._match(sequence)
        used = [node for node in path if node.num_users > 0 and node.holder is not None]
        return Known(length, min(length, used[-1].end) if used else 0)

    def admit(self, sequence: Sequence, num_free: int) -> int:
        """Give a sequence, which has got a slot, the longest prefix that is known.

        Returns how many tokens of it the sequence's owner has used before. `num_free` cells are
        nobody's: more are evicted where a state must be restored.
        """
        assert sequence.slot is not None
        path, length = self._match(sequence)
        usable = self._bring_back(path, length, num_free)
        if len(usable) == len(path) and path and length < path[-1].end:
            if self._split(path[-1], length - path[-1].start):
                head = path[-1].parent
                assert head is not None
                usable[-1] = head
            else:
                usable.pop()
            self._unlock(path[-1])
        for node in usable:
            assert node.holder is not None
            self._memory.share(node.holder, sequence.slot, node.start, node.end)
        length = usable[-1].end if usable else 0
        if not self._memory.holds(sequence.slot, length):  # a sliding window has moved on
            self._memory.drop(sequence.slot)
            self._give_up(usable)
            return 0
        if usable:
            self._last_nodes[sequence.slot] = usable[-1]
        sequence.num_shared = sequence.num_computed = length
        return self._note_use(usable, sequence.owner)

    def move(self, sequence: Sequence, slot: int) -> bool:
        """Move nothing: here all slots share the cells, and no sequence outgrows them."""
        return False

    def publish(self, sequence: Sequence, length: int, num_free: int) -> bool:
        """Make the first `length` computed tokens of a running sequence known to others."""
        assert sequence.slot is not None
        assert length <= sequence.num_computed
        node = self._last_nodes.get(sequence.slot) or self._root
        while sequence.num_shared < length:
            if self._must_bring_back(node, sequence, length):
                num_free = self._bring_back_one(node.children[key_at(sequence, node.end)], num_free)
            next_node = self._extend(node, sequence, length)
            if next_node is None:
                break
            node = next_node
            self._last_nodes[sequence.slot] = node
            sequence.num_shared = node.end
        return sequence.num_shared >= length

    def leave(self, sequence: Sequence, keep: bool, num_free: int) -> None:
        """Take a sequence's cells; with `keep`, what it computed stays known."""
        assert sequence.slot is not None
        if keep:
            self.publish(sequence, sequence.num_computed, num_free)
        node = self._last_nodes.pop(sequence.slot, None)
        while node is not None and node.parent is not None:
            self._unlock(node)
            node = node.parent
        self._memory.drop(sequence.slot)
        sequence.num_shared = sequence.num_computed = 0

    def roll_back(self, sequence: Sequence) -> bool:
        """Take from a running sequence what is behind its computed tokens."""
        assert sequence.slot is not None
        self._memory.cut(sequence.slot, sequence.num_computed)
        return True

    def evict(self, count: int) -> int:
        """Free so many cells that nobody uses, or as many as there are; return how many."""
        freed = 0
        while freed < count and self._parked:
            freed += self._evict_node(next(iter(self._parked)))
        return freed

    def stepped(self, num_rows: int) -> None:
        """Take note that a step computed so many rows, each beside all parked cells."""
        self._rows += num_rows
        while self._parked:
            node = next(iter(self._parked))
            if self._rows - node.parked_at <= self._rows_worth_parking:
                return
            self._evict_node(node)

    def check_integrity(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless everything is accounted for exactly once."""
        nodes = list(self._root.below())
        users = dict.fromkeys(nodes, 0)
        for sequence in running:
            assert sequence.slot is not None
            node = self._last_nodes.get(sequence.slot)
            assert sequence.num_shared == (node.end if node is not None else 0)
            assert sequence.num_shared <= sequence.num_computed
            while node is not None and node.parent is not None:
                assert sequence.tokens[node.start : node.end] == node.tokens
                assert sequence.salt_at(node.start) == sequence.salt_at(node.end - 1) == node.salt
                users[node] += 1
                node = node.parent
        for node in nodes:
            assert node.parent is not None
            assert node.tokens
            assert node.parent.children[node.key] is node
            assert node.parent.salt in (None, node.salt)
            assert node.start == node.parent.end
            assert node.num_users == users[node]
            assert node.holder is not None or node.state is not None
            assert (
                node.holder is None or node.parent is self._root or node.parent.holder is not None
            )
            assert (node in self._parked) == node.is_parked
            assert (node in self._host) == (node.state is not None)
        holders = [node.holder for node in nodes if node.holder is not None]
        assert len({*holders, *self._free_holders}) == len(holders) + len(self._free_holders)
        on_device = [node for node in nodes if node.holder is not None]
        assert self._num_parked == sum(len(n.tokens) for n in on_device if not n.num_users)
        assert self._num_locked == sum(len(n.tokens) for n in on_device if n.num_users)
        assert self._host.num_bytes == sum(len(n.state) for n in nodes if n.state is not None)
        self._owners.check_integrity(set(nodes))

    # -- finding ---------------------------------------------------------------------------------

    def _match(self, sequence: Sequence) -> tuple[list[Node], int]:
        """Return the nodes that a sequence's tokens run through, and how far they agree.

        The last token is left out: it must be computed, or there were no logits to draw from.
        """
        limit = len(sequence.tokens) - 1
        node = self._root
        path: list[Node] = []
        length = 0
        while length < limit and (child := node.children.get(key_at(sequence, length))) is not None:
            node = child
            agreed = node.agreed(sequence, limit)
            if agreed < min(len(node.tokens), MIN_SHARED):
                break
            length += agreed
            path.append(node)
            if agreed < len(node.tokens):
                break
        return path, length

    def _note_use(self, path: list[Node], owner: str) -> int:
        """Take note that a tenant uses a path; return how many of its tokens it has used before."""
        num_own = 0
        for node in path:
            if num_own == node.start and self._owners.count(node, owner) == len(node.tokens):
                num_own = node.end
            self._owners.note(node, owner, len(node.tokens))
        return num_own

    def _bring_back(self, path: list[Node], length: int, num_free: int) -> list[Node]:
        """Lock the nodes of a path, those on the host restored, up to the first without room.

        Of the path `length` tokens are wanted.
        """
        for node in path:
            self._lock(node)
        self._host.touch(path)
        for at, node in enumerate(path):
            if node.holder is not None:
                continue
            missing = len(node.tokens) - num_free
            if missing > 0:
                num_free += self.evict(missing)
            if missing > num_free or not self._restore(node):
                for unusable in reversed(path[at:]):
                    self._unlock(unusable)
                return path[:at]
            num_free -= len(node.tokens)
            self.stats.host_hits += max(0, min(length, node.end) - node.start)
        return list(path)

    def _restore(self, node: Node) -> bool:
        """Bring a locked node's cells back from the host."""
        assert node.state is not None
        holder = self._take_holder()
        if holder is None:
            return False
        if not self._memory.restore(holder, node.state):
            self._free_holders.append(holder)
            return False
        node.holder = holder
        self._num_locked += len(node.tokens)
        return True

    # -- growing ---------------------------------------------------------------------------------

    def _extend(self, node: Node, sequence: Sequence, length: int) -> Node | None:
        """Go one node further down with a sequence's own cells; None when there is no holder."""
        assert sequence.slot is not None
        start = sequence.num_shared
        child = node.children.get(key_at(sequence, start))
        if child is None:
            return self._insert(node, sequence, length)
        agreed = child.agreed(sequence, length)
        if agreed < len(child.tokens):
            if (
                child.holder is None
                or length - start < MIN_SHARED
                or not self._split(child, agreed)
            ):
                return None
            child = node.children[key_at(sequence, start)]
        self._lock(child)  # or its state might make way for what is evicted for the holder
        if child.holder is None:
            child.holder = self._take_holder()
            if child.holder is None:
                self._unlock(child)
                return None
            self._memory.share(sequence.slot, child.holder, child.start, child.end)
            self._num_locked += len(child.tokens)
        else:  # computed twice: one of the two is enough
            self._memory.cut(sequence.slot, child.start, child.end)
            self._memory.share(child.holder, sequence.slot, child.start, child.end)
        self._owners.note(child, sequence.owner, len(child.tokens))
        return child

    def _must_bring_back(self, node: Node, sequence: Sequence, length: int) -> bool:
        """Whether the next node on a sequence's way is on the host, and must be split."""
        child = node.children.get(key_at(sequence, node.end))
        if child is None or child.holder is not None or length - node.end < MIN_SHARED:
            return False
        return child.agreed(sequence, length) < len(child.tokens)

    def _bring_back_one(self, node: Node, num_free: int) -> int:
        """Restore a node, if there is room for it, and park it; return what is still free."""
        usable = self._bring_back([node], node.start, num_free)
        if not usable:
            return num_free
        self._unlock(node)
        return max(0, num_free - len(node.tokens))

    def _insert(self, parent: Node, sequence: Sequence, length: int) -> Node | None:
        assert sequence.slot is not None
        start = sequence.num_shared
        if length - start < MIN_SHARED:
            return None
        holder = self._take_holder()
        if holder is None:
            return None
        length = end_of_salt(sequence, start, length)
        salt = sequence.salt_at(start)
        node = Node(sequence.tokens[start:length], start, parent, salt, sequence.owner)
        parent.children[node.key] = node
        node.holder = holder
        node.num_users = 1
        self._memory.share(sequence.slot, holder, start, length)
        self._num_locked += len(node.tokens)
        return node

    def _split(self, node: Node, count: int) -> bool:
        """Give a node's first `count` tokens to a new parent of it; the node is on the device.

        The new one has as many users. False when there is no holder for it.
        """
        assert node.parent is not None
        assert node.holder is not None
        assert 0 < count < len(node.tokens)
        self._lock(node)  # or it might be evicted for the holder
        holder = self._take_holder()
        self._unlock(node)
        if holder is None:
            return False
        head = Node(node.tokens[:count], node.start, node.parent, node.salt, node.owner)
        head.holder = holder
        head.num_users = node.num_users
        self._memory.share(node.holder, holder, head.start, head.end)
        self._memory.cut(node.holder, head.start, head.end)
        self._host.forget(node)
        self._owners.note_all(head, self._owners.used_by(node))
        node.parent.children[head.key] = head
        node.tokens, node.start, node.parent = node.tokens[count:], head.end, head
        head.children[node.key] = node
        if head.is_parked:
            self._park(head)
        return True

    # -- shrinking -------------------------------------------------------------------------------

    def _lock(self, node: Node) -> None:
        if node.is_parked:
            del self._parked[node]
            self._num_parked -= len(node.tokens)
            self._num_locked += len(node.tokens)
        node.num_users += 1

    def _unlock(self, node: Node) -> None:
        node.num_users -= 1
        if node.is_parked:
            self._num_locked -= len(node.tokens)
            self._num_parked += len(node.tokens)
            self._park(node)

    def _park(self, node: Node) -> None:
        """Put a node at the end of those that may be evicted: behind its children."""
        node.parked_at = self._rows
        self._parked[node] = None

    def _take_holder(self) -> int | None:
        if not self._free_holders and self._parked:
            self._evict_node(next(iter(self._parked)))
        return self._free_holders.pop() if self._free_holders else None

    def _evict_node(self, node: Node) -> int:
        """Take a parked node's cells, to the host where they fit; return how many."""
        assert node.is_parked
        assert node.holder is not None
        assert node.is_last_on_device
        if node.state is None:
            self._save(node)
        self._memory.drop(node.holder)
        self._free_holders.append(node.holder)
        node.holder = None
        del self._parked[node]
        self._num_parked -= len(node.tokens)
        self.stats.evictions += len(node.tokens)
        if node.state is None:
            self._remove(node)
        return len(node.tokens)

    def _save(self, node: Node) -> None:
        """Copy a node's cells to the host, if they fit there; what was used least makes room."""
        assert node.holder is not None
        if self._host.max_bytes == 0:
            return
        size = self._memory.size(node.holder)
        if size > self._host.max_bytes:
            return
        for other in self._host.in_the_way_of(size):
            self._host.forget(other)
            if other.holder is None:
                self._remove(other)
        if self._host.num_bytes + size > self._host.max_bytes:
            return
        state = self._memory.save(node.holder)
        if state is not None:
            self._host.put(node, state)

    def _remove(self, node: Node) -> None:
        """Take a node that is nowhere in memory out of the tree, and what is below it."""
        assert node.parent is not None
        for below in node.below():
            assert below.holder is None
            self._host.forget(below)
            self._owners.forget(below)
        self._owners.forget(node)
        del node.parent.children[node.key]

    def _give_up(self, path: list[Node]) -> None:
        """Unlock a path whose cells are not whole, and evict what of it nobody else uses."""
        for node in reversed(path):
            self._unlock(node)
        for node in reversed(path):
            for each in [*reversed(list(node.below())), node]:
                if each.is_parked and each.is_last_on_device:
                    self._evict_node(each)
