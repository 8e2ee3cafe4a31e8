"""What has left the device: states of nodes in host memory, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from kserve_llamacpp.engine.cache.node import Node


class HostTier:
    """The nodes that have a state, the least used first; owner: the radix cache."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._nodes: OrderedDict[Node, None] = OrderedDict()

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def put(self, node: Node, state: bytearray) -> None:
        """Give a node a state; there must be room."""
        assert node.state is None
        node.state = state
        self._nodes[node] = None
        self.num_bytes += len(state)
        assert self.num_bytes <= self.max_bytes

    def touch(self, path: list[Node]) -> None:
        """Take note that a path was used: a parent counts as used after its children."""
        for node in reversed(path):
            if node.state is not None:
                self._nodes.move_to_end(node)

    def forget(self, node: Node) -> None:
        """Drop a node's state, if it has one."""
        if node.state is not None:
            self.num_bytes -= len(node.state)
            node.state = None
            del self._nodes[node]

    def in_the_way_of(self, count: int) -> Iterator[Node]:
        """Yield nodes to forget, until so many bytes fit; those in use are left out."""
        for node in list(self._nodes):
            if self.num_bytes + count <= self.max_bytes:
                return
            if node.state is not None and node.num_users == 0:
                yield node
