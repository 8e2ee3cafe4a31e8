"""V1 predict, over a model whose answers the test gives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kserve_llamacpp.engine_client.generation import Generation
from kserve_llamacpp.model import LlamaCppModel
from openai_protocol.errors import InvalidRequest
from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import CompletionRequest


class _Served:
    """A model that refuses the last instance; `turns` tells how often others had theirs before."""

    name = "m"
    limits = RequestLimits()
    is_ready = True

    def __init__(self) -> None:
        self.turn = 0
        self.turns: list[int] = []
        self.cancelled: list[Generation] | None = None

    def complete(self, request: CompletionRequest, *_: Any) -> list[Generation]:
        self.turns.append(self.turn)
        if request.prompts() == ["last"]:
            raise InvalidRequest("no", param="prompt")
        return []

    def cancel(self, generations: list[Generation]) -> None:
        self.cancelled = generations


async def test_others_have_their_turn_between_two_instances() -> None:
    """128 instances do not keep the event loop until the last one is submitted."""
    served = _Served()
    model: Any = LlamaCppModel(served)  # type: ignore[arg-type]  # as much of it as predict asks for

    async def others() -> None:
        while True:
            served.turn += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    with pytest.raises(InvalidRequest) as caught:
        await model.predict({"instances": ["a", "b", "last", "never"]})
    beside.cancel()

    assert caught.value.param == "instances[2].prompt"
    assert served.turns == sorted(set(served.turns))
    assert len(served.turns) == 3
    assert served.cancelled == []
