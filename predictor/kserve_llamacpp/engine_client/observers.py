"""Who is told of what happens to the engine and to requests."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from kserve_llamacpp.wire.frames import Stats


class EngineState(Enum):
    """Where the engine's process stands; only READY answers.

    FAILED is not the end: the engine is tried again, but nobody is to wait for it.
    """

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class EngineObserver(Protocol):
    """Is told how the engine's process fares; must not block nor raise."""

    def state_changed(self, state: EngineState) -> None:
        """The engine's process has changed its state."""

    def loading(self, fraction: float) -> None:
        """So much of the model is loaded, 0 to 1."""

    def engine_hung(self, silent_seconds: float) -> None:
        """The engine's process has told nothing for so long, and is killed."""

    def engine_died(self, exit_status: int | None) -> None:
        """The engine's process ended by itself."""

    def engine_not_started(self, why: str) -> None:
        """No engine could be started, or it could not load the model."""

    def engine_lost(self, why: str) -> None:
        """Only a new server can start another engine."""


class RequestObserver(Protocol):
    """Is told how requests fare, at every step; must not block nor raise."""

    def stepped(self, stats: Stats) -> None:
        """The engine finished a step."""

    def request_refused(self, code: str) -> None:
        """A request was not taken, or has waited in vain."""

    def request_guilty(self, request_id: str, num_deaths: int) -> None:
        """So many engines died under a request, the last one with nothing else running."""

    def request_started(self, queue_seconds: float, prompt_tokens: int, cached_tokens: int) -> None:
        """A request left the queue, for the first time; a cache had so much of its prompt."""

    def first_token(self, seconds: float) -> None:
        """A request got its first token, so long after it came."""

    def next_token(self, seconds: float) -> None:
        """A request got a later token, so long after the one before."""

    def request_ended(self, reason: str, seconds: float) -> None:
        """A request ended: `stop`, `length`, `abort` or `error`."""
