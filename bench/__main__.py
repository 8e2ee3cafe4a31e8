"""`python -m bench`: measure our predictor, beside llama-server where a binary is given.

The servers run at the same time and are loaded in turn, round by round, so that a machine whose
speed drifts is as slow for one as for the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path

from bench import servers
from bench.load import prompt, run_load
from bench.report import Figures, figures, table
from bootstrap import model
from bootstrap.cache import open_cache


def main() -> int:
    """Run the benchmark and print its table; return the exit status."""
    args = _parse()
    setup = servers.Setup(args.model, args.n_ctx, args.slots, args.threads)
    with contextlib.ExitStack() as stack:
        try:
            targets = [servers.Target(*given.split("=", 1)) for given in args.url]
            if not targets:
                targets.append(stack.enter_context(servers.ours(setup)))
            if args.llama_server:
                targets.append(stack.enter_context(servers.llama_server(setup, args.llama_server)))
            print(table(asyncio.run(_measure(args, targets))))
        except (servers.ServerFailed, ValueError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    return 0


async def _measure(
    args: argparse.Namespace, targets: list[servers.Target]
) -> list[tuple[int, str, list[Figures]]]:
    rows = []
    number = 0
    for num_clients in args.clients:
        results: dict[str, list[Figures]] = {target.name: [] for target in targets}
        num_requests = max(args.requests, 2 * num_clients)
        for turn in range(-1, args.rounds):  # the first one warms up and is not counted
            for target in targets:
                prompts = [prompt(number + at) for at in range(num_requests if turn >= 0 else 1)]
                number += len(prompts)
                run = await run_load(
                    target.base_url, target.model, num_clients, prompts, args.max_tokens
                )
                if turn >= 0:
                    results[target.name].append(figures(run))
                    print(".", end="", file=sys.stderr, flush=True)
        rows += [(num_clients, name, rounds) for name, rounds in results.items()]
    print(file=sys.stderr)
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--clients", type=_numbers, default=[1, 4, 8], help="Numbers of clients, as in 1,4,8.")
    add("--rounds", type=int, default=3, help="Measured rounds; medians are printed.")
    add("--requests", type=int, default=8, help="Requests in a round, at least two a client.")
    add("--max-tokens", type=int, default=64, help="Tokens of each answer.")
    add("--llama-server", type=Path, help="Path of a llama-server binary to measure beside ours.")
    add("--url", action="append", default=[], help="NAME=URL: measure a running server instead.")
    add("--model", type=Path, help="GGUF file; by default the small one that `make model` fetches.")
    add("--n-ctx", type=int, default=16384, help="KV cells.")
    add("--slots", type=int, default=8, help="Sequences that are decoded together.")
    add("--threads", type=int, default=os.cpu_count(), help="Threads.")
    args = parser.parse_args()
    if args.model is None:
        args.model = model.ensure(open_cache(os.environ), os.environ)
    return args


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
