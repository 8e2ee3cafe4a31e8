"""`python -m bench.proxy against`: our proxy beside that of an older commit.

Both stand between one compiled client and one compiled upstream and are loaded in turn, round by
round. Measured are the processor time of an answer, whole or as a stream of events, and the rate.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import time

from bench.against import finish
from bench.checkouts import LEAST_RATE, MOST_CPU, NEW, OLD, ROOT, Promise, environment
from bench.proxy import peers
from bench.proxy.children import Processors
from bench.proxy.compiled import compile_wire
from bench.proxy.layouts import ANSWERS, CHUNKS
from bench.proxy.load import Client, upstream
from bench.proxy.peers import RAW, Server
from bench.proxy.runner import Runner
from bench.proxy.sizes import Sizes
from bench.results import Results, hardware
from bench.runner import say
from bootstrap.cache import open_cache

PROMISES = tuple(
    promise
    for load in (ANSWERS, CHUNKS)
    for promise in (
        Promise(load, "cpu_us", at_most=MOST_CPU),
        Promise(load, "requests_per_second", at_least=LEAST_RATE),
    )
)


def add_proxy(parser: argparse.ArgumentParser) -> None:
    """Add what only the proxy's command takes."""
    add = parser.add_argument
    add("--seconds", type=float, default=3.0, help="Time of each load.")


def run(args: argparse.Namespace) -> int:
    """Measure, and print the ratios; return the exit status, 1 where a promise is not kept."""
    warm_up = min(Sizes.warm_up_seconds, args.seconds / 4)
    sizes = Sizes(rounds=args.rounds, warm_up_seconds=warm_up, measure_seconds=args.seconds)
    commits = [(NEW, environment(ROOT)), (OLD, environment(args.old))]
    wire = compile_wire(open_cache(os.environ).tools, os.environ)
    available = sorted(os.sched_getaffinity(0))
    processors = Processors.share_out(available)
    # what measures must not disturb what is measured
    os.sched_setaffinity(0, available[1:] or available)
    results = Results(
        f"{hardware()}; {processors}", {"old": str(args.old), **dataclasses.asdict(sizes)}
    )
    with upstream(wire, processors) as (port, family), contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(
                dataclasses.replace(
                    peers.ours(port, max(sizes.connections)), name=name, environment=variables
                ).running(wire, processors)
            )
            for name, variables in commits
        ]
        raw = Server(RAW, port, family)
        client = Client(wire, processors)
        runner = Runner(results, sizes, client, raw, lambda: None, time.sleep)
        runner.on_answers(both)
        runner.on_chunks(both)
    say("\n")
    return finish(results, PROMISES, args.json)
