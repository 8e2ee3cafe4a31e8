"""What the upstreams list, asked for together and kept for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from openai_protocol.errors import ApiError
from openai_protocol.responses import model_object
from openai_proxy.dialects.openai import OpenAIDialect, invalid_response
from openai_proxy.routing.models import ModelTable
from openai_proxy.routing.retry import read
from openai_proxy.routing.router import Router
from openai_proxy.routing.upstream import Upstream
from openai_proxy.running import Running

TIMEOUT_SECONDS = 10.0
# So long one upstream is waited for while another has answered.
PATIENCE_SECONDS = 2.0
Objects = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """One upstream's list, on its way or here; `asked_at` by the lists' clock."""

    upstream: Upstream
    asked_at: float
    answer: asyncio.Task[None]


class ModelLists:
    """The models of all upstreams as clients see them; owner of the questions to them.

    Where one upstream fails, the others' models are listed; where all do, the first one's error is
    told. One that is slow has those that it had last. Invariant: each upstream is asked once at a
    time; who comes meanwhile waits for that answer.
    """

    def __init__(
        self,
        router: Router,
        running: Running,
        cache_seconds: float,
        timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_seconds` is how long a request waits for a list at most."""
        self._router = router
        self._running = running
        self._cache_seconds = cache_seconds
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._questions: dict[str, _Question] = {}
        self._found: dict[str, Objects] = {}
        self._known: Objects = []
        self._known_until = -1.0
        self._known_by: ModelTable | None = None

    async def models(self, request_id: str) -> Objects:
        """Return the model objects that clients see; raises ApiError."""
        if self._router.without_upstream:
            return []
        table = self._router.table
        if self._clock() >= self._known_until or table is not self._known_by:
            # As a request that runs: a reload closes no connection while it waits.
            async with self._running.leash(self._timeout_seconds):
                found = await self._ask_all(request_id)
            self._known = table.listed(found)
            self._known_by = table
            if found:  # else every upstream was another by the time it answered
                self._known_until = self._clock() + self._cache_seconds
        return self._known

    async def _ask_all(self, request_id: str) -> Mapping[str, Objects]:
        upstreams = {name: one for name, one in self._router.upstreams.items() if one is not None}
        if not upstreams:
            self._router.route(None)  # says why there is none
        questions = [self._question(*pair, request_id) for pair in upstreams.items()]
        await _wait(questions, self._clock())
        while not (found := self._found_of(upstreams)):
            late = [question.answer for question in questions if not question.answer.done()]
            if not late:
                break
            await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        for question in questions:
            error = question.answer.exception() if question.answer.done() else None
            if error is not None and not (found and isinstance(error, ApiError)):
                raise error
        return found

    def _found_of(self, names: Iterable[str]) -> dict[str, Objects]:
        return {name: self._found[name] for name in names if name in self._found}

    def _question(self, name: str, upstream: Upstream, request_id: str) -> _Question:
        """Return the question that is on its way, or a new one."""
        known = self._questions.get(name)
        if known is not None and known.upstream is not upstream:
            self._found.pop(name, None)  # a backend that was started again
        elif known is not None and not known.answer.done():
            return known
        answer = asyncio.create_task(self._ask(name, upstream, request_id))
        answer.add_done_callback(_take_note)
        self._questions[name] = made = _Question(upstream, self._clock(), answer)
        return made

    async def _ask(self, name: str, upstream: Upstream, request_id: str) -> None:
        """Keep what an upstream lists, also where nobody waits for it any more; raises ApiError."""
        found: Objects | None = None
        try:
            found = await self._objects(name, upstream, request_id)
        finally:
            if self._questions[name].upstream is upstream:
                if found is not None:
                    self._found[name] = found
                else:
                    self._found.pop(name, None)

    async def _objects(self, name: str, upstream: Upstream, request_id: str) -> Objects:
        fixed = self._router.fixed.get(name)
        if fixed is not None:
            return [model_object(model, 0, name) for model in fixed]
        return await objects_of(upstream, request_id)


def _take_note(answer: asyncio.Task[None]) -> None:
    """Take note of how it ended: nobody may be waiting any more."""
    if not answer.cancelled():
        answer.exception()


async def _wait(questions: Sequence[_Question], now: float) -> None:
    """Wait for answers, but for one that hangs not again and again."""
    young = [one.answer for one in questions if now < one.asked_at + PATIENCE_SECONDS]
    if young:
        await asyncio.wait(young, timeout=PATIENCE_SECONDS)


async def objects_of(upstream: Upstream, request_id: str = "") -> Objects:
    """Return an upstream's model objects, made where it lists only names; raises ApiError."""
    dialect = upstream.dialect
    head, body = await read(upstream, dialect.models_path, TIMEOUT_SECONDS, request_id)
    if head.status != 200:
        raise upstream.error(head, body)
    listed = _listed(body)
    if isinstance(dialect, OpenAIDialect):
        if listed is None:
            raise invalid_response()
        return listed
    names = dialect.models(body)
    if names is None:
        raise invalid_response()
    # Some of the others list their models in OpenAI's form, too.
    told = {item.get("id"): item for item in listed or ()}
    return [told.get(name) or model_object(name, 0, "upstream") for name in names]


def _listed(body: bytes) -> Objects | None:
    """Return the objects of OpenAI's list of models, or None where it is no such list."""
    try:
        value = from_json(body)
    except ValueError:
        return None
    data = value.get("data") if isinstance(value, dict) else None
    return [item for item in data if isinstance(item, dict)] if isinstance(data, list) else None
