"""Asks the scenarios: the servers in turn within each round, so that all see the same machine."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from bench import metrics, servers
from bench.engine_rate import BatchedBench, OurEngine
from bench.figures import Outcome
from bench.load import Client, Request
from bench.prompts import Prompts
from bench.results import Results, Row
from bench.scenarios import Distinct, Scenario
from bench.servers import Setup, Target
from bench.sizes import Sizes
from bench.step_times import Stepper, steppers

CHURN = "churned-cache"
DETERMINISTIC = "deterministic"
OVERHEAD = "engine-overhead"
KV_LAYOUTS = "kv-layouts"
COLD, CHURNED = "ours, just started", "ours, caches churned"
DEFAULT_MODE, DETERMINISTIC_MODE = "ours, default mode", "ours, --deterministic"
_CHURN_WORDS = 400
_CHURN_CLIENTS = 4


_Item = TypeVar("_Item")


class Runner:
    """Runs scenarios and keeps what they gave; owner: one run of the benchmark."""

    def __init__(
        self, results: Results, sizes: Sizes, prompts: Prompts, save: Callable[[], None]
    ) -> None:
        """`save` is called with every new row in `results`: a run that is cut off keeps them."""
        self._results = results
        self._sizes = sizes
        self._prompts = prompts
        self._save = save

    async def on_servers(self, targets: Sequence[Target], scenarios: Sequence[Scenario]) -> None:
        """Ask running servers."""
        for target in targets:
            await self._warm_up(target)
        self._note_memory(targets, "at the start")
        for scenario in scenarios:
            before = metrics.cache_samples(targets[0].metrics())
            for turn in range(self._sizes.rounds):
                for case in scenario.cases:
                    for target in in_turn(targets, turn):
                        await self._measure(scenario, case, target, turn)
            after = metrics.cache_samples(targets[0].metrics())
            self._results.counters[scenario.name] = metrics.risen(before, after)
            self._note_memory(targets, f"after {scenario.name}")

    async def on_churned_caches(self, setup: Setup) -> None:
        """Ask our server with caches that have evicted, and beside it one that has just started."""
        scenario = Distinct(self._sizes, CHURN)
        with servers.ours(setup, CHURNED) as churned:
            await self._warm_up(churned)
            await self._churn(churned)
            for turn in range(self._sizes.rounds):
                with servers.ours(setup, COLD) as cold:
                    await self._warm_up(cold)
                    for case in scenario.cases:
                        for target in in_turn([cold, churned], turn):
                            await self._measure(scenario, case, target, turn)
            self._results.counters[CHURN] = metrics.risen(
                {}, metrics.cache_samples(churned.metrics())
            )
            self._note_memory([churned], "at the end")

    async def on_deterministic_mode(self, setup: Setup) -> None:
        """Ask our server with its defaults, and beside it one in deterministic mode.

        At most as many clients as slots: beyond, both only queue.
        """
        clients = tuple(count for count in self._sizes.clients if count <= setup.num_slots)
        load = Distinct(dataclasses.replace(self._sizes, clients=clients), DETERMINISTIC)
        exact = dataclasses.replace(setup, our_args=(*setup.our_args, "--deterministic"))
        with (
            servers.ours(setup, DEFAULT_MODE) as default,
            servers.ours(exact, DETERMINISTIC_MODE) as deterministic,
        ):
            await self.on_servers([default, deterministic], [load])

    def on_engine(self, setup: Setup, peers: Sequence[BatchedBench]) -> None:
        """Measure the decode rate of the engine without HTTP, beside llama-batched-bench."""
        steps = self._sizes.decode_steps
        engines: list[BatchedBench | OurEngine] = [*peers, OurEngine(setup)]
        for turn in range(self._sizes.rounds):
            for count in self._sizes.clients:
                for engine in in_turn(engines, turn):
                    rate = engine.rate(count, steps, seed=turn)
                    outcome = Outcome({"decode_tokens_per_second": rate})
                    self._add(Row(OVERHEAD, _sequences(count), engine.name, turn, outcome))

    def on_kv_layouts(self, setup: Setup) -> None:
        """Measure a decode step of the engine without HTTP under each setting.

        A prompt is prefilled once for all rounds: one engine stands still while another is asked.
        """
        sizes = self._sizes
        counts = sorted(set(sizes.clients))
        num_steps = len(counts) * sizes.rounds * (sizes.layout_steps + 2)
        for length in sizes.contexts:
            with steppers(setup, length, counts[-1], num_steps, seed=length) as engines:
                for before, count in itertools.pairwise((0, *counts)):
                    for engine in engines.values():
                        engine.add(count - before)
                    self._take_steps(engines, f"{_sequences(count)} of {length} tokens")

    def _take_steps(self, engines: dict[str, Stepper], case: str) -> None:
        for turn in range(self._sizes.rounds):
            for setting in in_turn(list(engines), turn):
                milliseconds = engines[setting].milliseconds(self._sizes.layout_steps)
                self._add(Row(KV_LAYOUTS, case, setting, turn, Outcome({"step_ms": milliseconds})))

    async def _measure(self, scenario: Scenario, case: str, target: Target, turn: int) -> None:
        cpu, began = time.process_time(), time.perf_counter()
        async with Client(target) as client:
            outcome = await scenario.run(case, client, self._prompts)
        share = (time.process_time() - cpu) / (time.perf_counter() - began)
        self._results.client_percent = max(self._results.client_percent, 100 * share)
        self._add(Row(scenario.name, case, target.name, turn, outcome))

    async def _warm_up(self, target: Target) -> None:
        async with Client(target) as client:
            await client.ask(Request.of(self._prompts.text(20), 4))

    async def _churn(self, target: Target) -> None:
        """Prefill new prompts until every tier of the cache has evicted."""
        num_prompts = 0
        history = [metrics.cache_samples(target.metrics())]
        async with Client(target) as client:
            while num_prompts < self._sizes.churn_prompts and not metrics.has_evicted(history):
                texts = [self._prompts.text(_CHURN_WORDS) for _ in range(_CHURN_CLIENTS)]
                await client.ask_all([Request.of(text, 2) for text in texts], _CHURN_CLIENTS)
                num_prompts += len(texts)
                history.append(metrics.cache_samples(target.metrics()))
        self._results.notes[CHURN] = (
            f"{num_prompts} prompts of {_CHURN_WORDS} words before: "
            f"{metrics.total(history[-1], 'evictions'):.0f} tokens evicted from the KV cache, "
            f"{metrics.total(history[-1], 'host_cache_bytes') / (1 << 20):.0f} MiB on the host"
            + ("" if metrics.has_evicted(history) else "; NOT all tiers were full")
        )

    def _note_memory(self, targets: Sequence[Target], moment: str) -> None:
        for target in targets:
            if (mib := target.memory_mib()) is not None:
                self._results.memory_mib.setdefault(target.name, {})[moment] = round(mib)

    def _add(self, row: Row) -> None:
        self._results.rows.append(row)
        self._save()
        say("!" if row.outcome.errors else ".")


def in_turn(items: Sequence[_Item], turn: int) -> list[_Item]:
    """Return the items, a different one first in each round: none always follows the same."""
    first = turn % len(items)
    return [*items[first:], *items[:first]]


def _sequences(count: int) -> str:
    return f"{count} sequence{'s' if count > 1 else ''}"


def say(text: str) -> None:
    """Tell how far the run is."""
    with contextlib.suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)
