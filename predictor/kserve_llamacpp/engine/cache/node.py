"""A span of tokens in the radix tree."""

from __future__ import annotations

from collections.abc import Iterator

from kserve_llamacpp.engine.cache.memory import common_length
from kserve_llamacpp.engine.sequence import Sequence

Key = tuple[str | None, int]  # salt, token


class Node:
    """A span of tokens; owner: its tree. In memory on the device, on the host, or on both.

    All of its tokens have one salt; None: any sequence may share them. `owner` is the tenant that
    has computed them, `holder` the sequence id that owns its cells, `state` its copy on the host.
    The root has no tokens and no parent.
    """

    def __init__(
        self,
        tokens: list[int],
        start: int,
        parent: Node | None,
        salt: str | None = None,
        owner: str = "",
    ) -> None:
        self.tokens = tokens
        self.start = start
        self.parent = parent
        self.salt = salt
        self.owner = owner
        self.children: dict[Key, Node] = {}
        self.holder: int | None = None
        self.state: bytearray | None = None
        self.num_users = 0
        self.parked_at = 0.0  # rows computed when its last user left

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.start + len(self.tokens)

    @property
    def key(self) -> Key:
        """What it is found by among its parent's children."""
        return self.salt, self.tokens[0]

    @property
    def is_parked(self) -> bool:
        """Whether its cells are on the device without a user."""
        return self.holder is not None and self.num_users == 0

    @property
    def is_last_on_device(self) -> bool:
        """Whether nothing below it has cells on the device."""
        return all(child.holder is None for child in self.children.values())

    def agreed(self, sequence: Sequence, end: int) -> int:
        """Return how many of its tokens are the sequence's, too, which ends before `end`."""
        end = end_of_salt(sequence, self.start, min(end, self.end))
        return common_length(self.tokens, sequence.tokens[self.start : end])

    def below(self) -> Iterator[Node]:
        """Yield all nodes below it, each before those below that."""
        todo = list(self.children.values())
        while todo:  # not by recursion: a text may have thousands of nodes on its way
            node = todo.pop()
            yield node
            todo += node.children.values()


def key_at(sequence: Sequence, position: int) -> Key:
    """Return by what the node is found that begins with a sequence's token."""
    return sequence.salt_at(position), sequence.tokens[position]


def end_of_salt(sequence: Sequence, start: int, end: int) -> int:
    """Return where the tokens from `start` end that have the same salt, at most `end`."""
    return min(end, sequence.num_unsalted) if start < sequence.num_unsalted else end
