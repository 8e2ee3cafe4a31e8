"""A repository of one model that is ready or not: what the routes of every protocol ask."""

from __future__ import annotations

from typing import Any

from kserve_llamacpp.api.models import Models
from openai_protocol.errors import ErrorCode, Unavailable


class _Served:
    """As much of a served model as its readiness."""

    name = "m"

    def __init__(self) -> None:
        self.is_ready = True
        self.is_alive = True


class Repository:
    """A repository with the model `m`, and whether its server drains."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {"m": _Served()}
        self.is_draining = False
        self.models = Models(lambda: list(self.content), self.content.get, self._check)

    def _check(self) -> None:
        if self.is_draining:
            raise Unavailable("Draining.", code=ErrorCode.SERVER_SHUTTING_DOWN)
