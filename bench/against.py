"""`python -m bench against`: our predictor beside that of an older commit.

Both run at the same time and are asked in turn, round by round. Measured are the tokens a second,
and the processor time of the server process alone, which speaks HTTP: the engine has its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import psutil

from bench import servers
from bench.checkouts import (
    LEAST_RATE,
    MOST_CPU,
    NEW,
    OLD,
    ROOT,
    Promise,
    comparisons,
    comparisons_table,
    environment,
)
from bench.figures import Outcome, outcome
from bench.load import Client, Request
from bench.prompts import Prompts
from bench.results import Results, Row, machine
from bench.runner import in_turn, say
from bench.servers import Setup, Target
from bench.sizes import Sizes
from bootstrap import model
from bootstrap.cache import open_cache

STREAMS, ANSWERS = "streams", "whole answers"
_CPU, _RATE = "server_cpu_us", "tokens_per_second"
PROMISES = (
    Promise(STREAMS, _RATE, at_least=LEAST_RATE),
    Promise(STREAMS, _CPU, at_most=MOST_CPU),
    Promise(ANSWERS, _CPU, at_most=MOST_CPU),
)
_ANSWER_TOKENS = 4  # short: what costs is the request, not the tokens
_ANSWERS_A_CLIENT = 16
_WARM_UP = 16


def add_against(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add = parser.add_argument
    add("--old", type=Path, required=True, metavar="DIR", help="A checkout of the older commit.")
    add("--rounds", type=int, default=5, help="Rounds; the median of their ratios counts.")
    add("--json", type=Path, help="Write all figures to this file.")


def add_predictor(parser: argparse.ArgumentParser) -> None:
    """Add what only the predictor's command takes."""
    add = parser.add_argument
    add("--model", type=Path, help="GGUF file; by default the small one that `make model` fetches.")
    add("--threads", type=int, default=os.cpu_count(), help="Threads of each engine.")
    add("--clients", type=int, nargs="+", default=[1, 8], help="Numbers of clients.")
    add("--requests", type=int, default=16, help="Streams of a round.")
    add("--max-tokens", type=int, default=64, help="Tokens of a stream.")


def run(args: argparse.Namespace) -> int:
    """Measure, and print the ratios; return the exit status, 1 where a promise is not kept."""
    commits = [(NEW, environment(ROOT)), (OLD, environment(args.old))]
    path = args.model or model.ensure(open_cache(os.environ), os.environ)
    setup = Setup(path, 16384, 8, args.threads)
    sizes = Sizes(
        rounds=args.rounds, requests=args.requests, max_tokens=args.max_tokens, prompt_words=50
    )
    results = Results(machine(), {"old": str(args.old), **dataclasses.asdict(sizes)})
    with contextlib.ExitStack() as stack:
        targets = [
            stack.enter_context(servers.ours(setup, name, variables)) for name, variables in commits
        ]
        asyncio.run(_measure(targets, sizes, args.clients, results))
    say("\n")
    return finish(results, PROMISES, args.json)


def finish(results: Results, promises: Sequence[Promise], file: Path | None) -> int:
    """Print the ratios and write the figures; return the exit status."""
    if file is not None:
        results.write(file)
    found = comparisons(results, promises)
    print(results.machine, comparisons_table(found), sep="\n\n")
    if results.num_failed:
        print(f"{results.num_failed} requests failed")
    return 0 if found and all(item.is_kept for item in found) and not results.num_failed else 1


async def _measure(
    targets: Sequence[Target], sizes: Sizes, clients: Sequence[int], results: Results
) -> None:
    prompts = Prompts(1)
    for target in targets:
        await _whole(target, _WARM_UP, 4)
    for turn in range(sizes.rounds):
        for count in clients:
            case = f"{count} client{'s' if count > 1 else ''}"
            texts = [prompts.text(sizes.prompt_words) for _ in range(max(sizes.requests, count))]
            for target in in_turn(targets, turn):
                found = await _streams(target, texts, sizes.max_tokens, count)
                results.rows.append(Row(STREAMS, case, target.name, turn, found))
                say(".")
            for target in in_turn(targets, turn):
                found = await _whole(target, count * _ANSWERS_A_CLIENT, count)
                results.rows.append(Row(ANSWERS, case, target.name, turn, found))
                say(".")


async def _streams(target: Target, texts: list[str], max_tokens: int, count: int) -> Outcome:
    """Ask for streams with the same new prompts on each server."""
    requests = [Request.of(text, max_tokens) for text in texts]
    before = _server_cpu_seconds(target)
    async with Client(target) as client:
        began = client.clock()
        samples = await client.ask_all(requests, count)
        seconds = client.clock() - began
    used = _server_cpu_seconds(target) - before
    return outcome(samples, seconds, server_cpu_us=1e6 * used / len(requests))


async def _whole(target: Target, num_requests: int, num_clients: int) -> Outcome:
    """Ask for short whole answers on connections that are used again."""
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": _ANSWER_TOKENS,
        "temperature": 0,
        **target.endless,
    }
    waiting = iter(range(num_requests))
    errors: dict[str, int] = {}
    before = _server_cpu_seconds(target)
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            for _ in waiting:
                url = f"{target.base_url}/chat/completions"
                async with session.post(url, json=body) as answer:
                    await answer.read()
                    if answer.status != 200:
                        name = f"HTTP {answer.status}"
                        errors[name] = errors.get(name, 0) + 1

        await asyncio.gather(*(client() for _ in range(num_clients)))
    used = _server_cpu_seconds(target) - before
    return Outcome({_CPU: 1e6 * used / num_requests}, num_requests, errors)


def _server_cpu_seconds(target: Target) -> float:
    """Return the processor time of the process that speaks HTTP, in seconds.

    The kernel counts it in nanoseconds for each thread, where it keeps such figures; else in ticks
    of 10 ms, which is coarse for a few short answers.
    """
    assert target.pid is not None
    seconds = 0.0
    try:
        for thread in Path(f"/proc/{target.pid}/task").iterdir():
            seconds += 1e-9 * int((thread / "schedstat").read_text().split()[0])
    except FileNotFoundError:
        times = psutil.Process(target.pid).cpu_times()
        return float(times.user + times.system)
    return seconds
