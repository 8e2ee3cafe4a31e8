"""A span of tokens in the radix tree."""

from __future__ import annotations

from collections.abc import Iterator


class Node:
    """A span of tokens; owner: its tree. In memory on the device, on the host, or on both.

    `holder` is the sequence id that owns its cells, `state` its copy on the host. A root has a
    salt, but no tokens and no parent.
    """

    def __init__(
        self, tokens: list[int], start: int, parent: Node | None, salt: str | None = None
    ) -> None:
        self.tokens = tokens
        self.start = start
        self.parent = parent
        self.salt = salt
        self.children: dict[int, Node] = {}
        self.holder: int | None = None
        self.state: bytearray | None = None
        self.num_users = 0
        self.parked_at = 0.0  # rows computed when its last user left

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.start + len(self.tokens)

    @property
    def is_parked(self) -> bool:
        """Whether its cells are on the device without a user."""
        return self.holder is not None and self.num_users == 0

    @property
    def is_last_on_device(self) -> bool:
        """Whether nothing below it has cells on the device."""
        return all(child.holder is None for child in self.children.values())

    def below(self) -> Iterator[Node]:
        """Yield all nodes below it, each before those below that."""
        todo = list(self.children.values())
        while todo:  # not by recursion: a text may have thousands of nodes on its way
            node = todo.pop()
            yield node
            todo += node.children.values()
