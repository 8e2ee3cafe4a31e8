"""Many prompts, one after another alone, then all in random company: is every byte the same?

A real predictor in deterministic mode is asked over HTTP. Alone: each from an empty cache, for
each has a salt of its own. In company: several clients of several tenants at once, with hits, a
host tier that is too small, preemptions, and the engine killed in the middle.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.processes import Predictor

_TENANTS = 6
_WORDS = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
_COUNTERS = {
    "hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
    "evictions": "kserve_llamacpp:cache_evictions_total",
    "deaths": "kserve_llamacpp:engine_deaths_total",
}


@dataclass(frozen=True)
class Load:
    """How many prompts, how long, by how many clients at once; `num_kills` of the engine."""

    num_prompts: int
    words: tuple[int, int]
    long_words: tuple[int, int]  # of every eighth prompt
    max_tokens: tuple[int, int]
    num_clients: int
    num_kills: int


Body = dict[str, Any]


def bodies(load: Load, seed: int) -> list[Body]:
    """Return the requests: half of them begin like others, half are drawn."""
    rng = random.Random(seed)
    beginnings = [_text(rng, load.words[1]) for _ in range(4)]
    found = []
    for at in range(load.num_prompts):
        length = rng.randint(*(load.long_words if at % 8 == 0 else load.words))
        common = rng.choice(beginnings)[: rng.randrange(length)] if rng.random() < 0.5 else []
        prompt = " ".join([*common, *_text(rng, length - len(common))])
        found.append(
            {
                "prompt": prompt,
                "max_tokens": rng.randint(*load.max_tokens),
                "temperature": rng.choice([0, 0.8]),
                "seed": at,
                "logprobs": 2,
                "ignore_eos": True,
            }
        )
    return found


def _text(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(_WORDS) for _ in range(count)]


class Asked:
    """What a predictor answered, to the last bit of each logprob, and what it counted meanwhile."""

    def __init__(self, server: Predictor, load: Load) -> None:
        self._server = server
        self._load = load
        self._http = httpx2.AsyncClient(base_url=server.url, timeout=600)
        self.num_cached = 0
        self.num_long = 0  # prompts of over 512 tokens

    async def close(self) -> None:
        """Leave."""
        await self._http.aclose()

    async def alone(self, requests: list[Body]) -> list[str]:
        """Ask one request after another, each from an empty cache."""
        return [
            await self._ask({**body, "cache_salt": f"alone-{at}"}, "one")
            for at, body in enumerate(requests)
        ]

    async def in_company(self, requests: list[Body], seed: int) -> list[str]:
        """Ask all in random order, several at a time; kill the engine now and then."""
        rng = random.Random(seed)
        order = list(range(len(requests)))
        rng.shuffle(order)
        waiting = iter(order)
        answers: dict[int, str] = {}
        kills = [
            (number + 1) * len(requests) // (self._load.num_kills + 1)
            for number in range(self._load.num_kills)
        ]

        async def client() -> None:
            for at in waiting:
                tenant = f"tenant-{rng.randrange(_TENANTS)}"
                answers[at] = await self._ask(requests[at], tenant)
                if len(answers) in kills:
                    kills.remove(len(answers))
                    self._server.engine().kill()

        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.num_clients):
                group.create_task(client())
        return [answers[at] for at in range(len(requests))]

    async def counted(self) -> dict[str, float]:
        """Return what the predictor counted, by the names of `_COUNTERS`."""
        lines = (await self._http.get("/metrics")).text.splitlines()
        return {name: _value(lines, metric) for name, metric in _COUNTERS.items()}

    async def _ask(self, body: Body, tenant: str) -> str:
        response = await self._http.post("/v1/completions", json=body, headers={"x-tenant": tenant})
        assert response.status_code == 200, response.text
        answer = response.json()
        usage = answer["usage"]
        self.num_cached += usage["prompt_tokens_details"]["cached_tokens"]
        self.num_long += usage["prompt_tokens"] > 512
        return repr((answer["choices"], usage["completion_tokens"], answer["system_fingerprint"]))


def _value(lines: Iterable[str], metric: str) -> float:
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if re.match(rf"{re.escape(metric)}(\{{| )", line)
    )


async def check(server: Predictor, load: Load, seed: int = 1) -> dict[str, float]:
    """Ask alone, then in company; raise AssertionError unless all is the same; return counts."""
    requests = bodies(load, seed)
    asked = Asked(server, load)
    try:
        alone = await asked.alone(requests)
        assert asked.num_cached == 0
        assert asked.num_long > 0
        company = await asked.in_company(requests, seed)
        counted = await asked.counted()
    finally:
        await asked.close()
    different = [at for at, answer in enumerate(company) if answer != alone[at]]
    assert not different, [(alone[at], company[at]) for at in different[:2]]
    return {"prompts": len(requests), "cached_tokens": asked.num_cached, **counted}
