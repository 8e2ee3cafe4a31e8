"""The `command` backend: any program that serves one of the dialects on a port."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from openai_proxy.backends.kind import ModelServer, fill


@dataclass(frozen=True, slots=True)
class Command(ModelServer):
    """A command line with placeholders; `words` as a shell would split it, no shell runs it.

    `model` is the name that it is told, `wanted` one that it is supposed to have of itself.
    """

    words: tuple[str, ...]
    model: str | None = None
    model_path: str | None = None
    arguments: tuple[str, ...] = ()
    health_path: str | None = None
    wanted: str | None = None

    name: ClassVar[str] = "command"
    program_setting: ClassVar[str] = "--backend-command"
    dialect: ClassVar[None] = None
    # Also a program that only starts a container, whose port others listen on.
    listens_itself: ClassVar[bool] = False
    # Who knows what 2 means to it.
    hopeless_codes: ClassVar[frozenset[int]] = frozenset()

    @property
    def program(self) -> str:  # type: ignore[override]  # a field of the other kinds
        """The command's first word."""
        return self.words[0]

    def command(self, host: str, port: int) -> list[str]:
        """Return the command with its placeholders filled, each within its own word."""
        values = {
            "host": host,
            "port": str(port),
            "model_path": self.model_path or "",
            "model_name": self.model or "",
        }
        return [*(fill(word, values) for word in self.words), *self.arguments]

    def choose_model(self, listed: Sequence[str]) -> str | None:
        """Return the wanted name, unless it lists another one alone; else the first that it lists.

        Some take shorter names than they list: Ollama's `llama3` is `llama3:latest`.
        """
        if self.wanted is not None and len(listed) != 1:
            return self.wanted
        return listed[0] if listed else None
