"""One request's answer, over a client whose engine the test plays."""

from __future__ import annotations

import json
from typing import Any

from starlette.types import Message, Scope

from kserve_llamacpp.api.answer import Answer
from kserve_llamacpp.api.shapes import ChatShape, Shape, TextShape
from kserve_llamacpp.engine_client.generation import Generation
from kserve_llamacpp.resume import Resumable
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_protocol.sse import data_of, split_events
from tests.predictor.fake_process import FACTS, ClientRun


class _Model:
    """As much of a served model as an answer asks for."""

    name = "m"

    def __init__(self, run: ClientRun) -> None:
        self._run = run

    def cancel(self, generations: list[Generation]) -> None:
        for generation in generations:
            self._run.client.cancel(generation)


class Exchange:
    """One request's answer over a client whose engine the test plays."""

    def __init__(
        self,
        run: ClientRun,
        prompts: str = "p",
        is_chat: bool = True,
        echoes: list[str] | None = None,
        resumable: Resumable | None = None,
        **body: Any,
    ) -> None:
        """Submit the choices of each letter of `prompts`; `body` is what the request says."""
        count = body.get("best_of") or body.get("n") or 1
        requests = [run.request(prompt) for prompt in prompts for _ in range(count)]
        if resumable is not None:
            requests = resumable.requests(requests, FACTS, is_deterministic=False)
        self.generations = run.client.submit(requests)
        self.scope: Scope = {"type": "http", "access_log": {}}
        self.sent: list[Message] = []
        request: ChatCompletionRequest | CompletionRequest
        if is_chat:
            request = ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], **body)
        else:
            request = CompletionRequest(prompt=list(prompts), **body)
        num_top = request.num_top_logprobs
        shape: Shape = ChatShape("m", "fp", num_top)
        if not is_chat:
            shape = TextShape("m", "fp", num_top, echoes)
        model: Any = _Model(run)
        self._answer = Answer(self.scope, model, request, self.generations, shape, resumable)

    async def run(self) -> None:
        """Answer, to the end."""
        response = await self._answer.response()
        await response(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        raise AssertionError("an answer reads nothing")

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def body(self) -> bytes:
        """Return what was sent, without the head."""
        return b"".join(message.get("body", b"") for message in self.sent)

    def whole(self) -> Any:
        """Return the answer in one piece."""
        return json.loads(self.body())

    def events(self) -> list[Any]:
        """Return the events of a stream, decoded, `[DONE]` as it is."""
        payloads = [data_of(event) for event in split_events(self.body())]
        return [p.decode() if p == b"[DONE]" else json.loads(p or b"") for p in payloads]
