"""`python -m bench`: measure our predictor beside its peers, and show what came out.

The servers run at the same time and are loaded in turn, round by round, so that a machine whose
speed drifts is as slow for one as for the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from bench import against, servers
from bench.command_line import add_commands, add_sizes, carry_out, sizes_of
from bench.engine_rate import BatchedBench
from bench.prompts import Prompts
from bench.report import LAYOUTS, report
from bench.results import Results, machine
from bench.runner import CHURN, DETERMINISTIC, KV_LAYOUTS, OVERHEAD, Runner
from bench.scenarios import Scenario, scenarios
from bench.sizes import QUICK, Sizes
from bootstrap import model
from bootstrap.cache import open_cache

_FLAGS: dict[str, Any] = {"action": "append", "default": [], "metavar": "FLAG"}


def main() -> int:
    """Do what the command line says; return the exit status, 1 when requests failed."""
    return carry_out(_parse(), _run, _show, _plot, against.run)


def _show(results: Results) -> None:
    print(report(results))


def _plot(results: Results, folder: Path) -> list[Path]:
    from bench.plots import write_plots

    return write_plots(results, folder)


def _run(args: argparse.Namespace) -> int:
    sizes = sizes_of(args, QUICK)
    path = args.model or model.ensure(open_cache(os.environ), os.environ)
    setup = servers.Setup(path, args.n_ctx, args.slots, args.threads, tuple(args.our_arg))
    settings = {
        "model": path.name,
        "n_ctx": setup.n_ctx,
        "slots": setup.num_slots,
        "threads": setup.num_threads,
        "our_args": list(setup.our_args),
        "seed": args.seed,
        **dataclasses.asdict(sizes),
    }
    results = Results(machine(), settings)

    def save() -> None:
        if args.json:
            results.write(args.json)

    runner = Runner(results, sizes, Prompts(args.seed), save)
    try:
        _ask(args, setup, runner)
    finally:  # hours of figures are worth keeping, also when the last scenario could not run
        print(file=sys.stderr)
        if results.rows:
            save()  # counters and memory came after the last row
            print(report(results))
    return 1 if results.num_failed else 0


def _ask(args: argparse.Namespace, setup: servers.Setup, runner: Runner) -> None:
    names = args.scenario or list(LAYOUTS)
    if asked := [item for item in scenarios(sizes_of(args, QUICK)) if item.name in names]:
        _on_servers(args, setup, runner, asked)
    if CHURN in names and not args.url:
        asyncio.run(runner.on_churned_caches(setup))
    if OVERHEAD in names:
        peers = [
            BatchedBench(args.batched_bench, setup, flags)
            for flags in _with_and_without(args.batched_bench_arg)
            if args.batched_bench
        ]
        runner.on_engine(setup, peers)
    if DETERMINISTIC in names and not args.url:
        asyncio.run(runner.on_deterministic_mode(setup))
    if KV_LAYOUTS in names:
        runner.on_kv_layouts(setup)


def _on_servers(
    args: argparse.Namespace, setup: servers.Setup, runner: Runner, asked: list[Scenario]
) -> None:
    with contextlib.ExitStack() as stack:
        targets = [servers.Target(*given.split("=", 1)) for given in args.url]
        if not targets:
            targets.append(stack.enter_context(servers.ours(setup)))
        if args.llama_server:
            for flags in _with_and_without(args.llama_server_arg):
                server = servers.llama_server(setup, args.llama_server, flags)
                targets.append(stack.enter_context(server))
        if args.example_server:
            example = servers.example_server(setup, args.example_server, args.mtmd_folder)
            targets.append(stack.enter_context(example))
        asyncio.run(runner.on_servers(targets, asked))


def _with_and_without(given: list[str]) -> list[tuple[str, ...]]:
    """Return a peer's flags: none, and those that were given for a second one."""
    flags = tuple(flag for text in given for flag in shlex.split(text))
    return [(), flags] if flags else [()]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    _add_run(add_commands(parser, "scenario", against.add_against, against.add_predictor))
    return _checked(parser, parser.parse_args())


def _checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    if args.command == "run":
        for name in args.scenario:
            if name not in LAYOUTS:
                parser.error(f"no scenario is called {name}: choose from {', '.join(LAYOUTS)}")
        if args.llama_server_arg and not args.llama_server:
            parser.error("--llama-server-arg needs --llama-server")
        if args.batched_bench_arg and not args.batched_bench:
            parser.error("--batched-bench-arg needs --batched-bench")
    return args


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("scenario", nargs="*", metavar="SCENARIO", help=f"{', '.join(LAYOUTS)}; by default all.")
    add("--json", type=Path, help="Write all figures to this file.")
    add("--llama-server", type=Path, help="Path of a llama-server to measure beside ours.")
    add("--llama-server-arg", **_FLAGS, help="Measure a second one, with this flag.")
    add("--example-server", type=Path, help="Path of llama-cpp-python's examples/server/server.py.")
    add("--mtmd-folder", type=Path, help="Folder with libmtmd, which the example server imports.")
    add("--batched-bench", type=Path, help="Path of a llama-batched-bench, for engine-overhead.")
    add("--batched-bench-arg", **_FLAGS, help="Measure a second one, with this flag.")
    add("--url", action="append", default=[], help="NAME=URL: measure a running server instead.")
    add("--model", type=Path, help="GGUF file; by default the small one that `make model` fetches.")
    add("--n-ctx", type=int, default=16384, help="KV cells.")
    add("--slots", type=int, default=8, help="Sequences that are decoded together.")
    add("--threads", type=int, default=os.cpu_count(), help="Threads.")
    add("--our-arg", **_FLAGS, help="One more flag for our server.")
    add("--seed", type=int, default=1, help="Prompts are drawn from it.")
    add("--quick", action="store_true", help="One small round: to see that all of it works.")
    add_sizes(parser, Sizes)


if __name__ == "__main__":
    sys.exit(main())
