"""`python -m bench.proxy`: measure our proxy beside its peers, and show what came out.

All stand between one compiled client and one compiled upstream on this machine, and are loaded in
turn, round by round, so that a machine whose speed drifts is as slow for one as for the other.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.against import add_against
from bench.command_line import add_commands, add_sizes, carry_out, sizes_of
from bench.plots import write_plots
from bench.proxy import against, haproxy, litellm_environment, peers
from bench.proxy.children import Processors, check_limit_of_files
from bench.proxy.compiled import Wire, compile_wire
from bench.proxy.goals import goals_table
from bench.proxy.layouts import ANSWERS, CHUNKS, COLOURS, LAYOUTS, OPEN, PACED, START
from bench.proxy.load import Client, upstream
from bench.proxy.peers import BARE, HAPROXY, LITELLM, RAW, Peer, Server
from bench.proxy.runner import Runner
from bench.proxy.sizes import QUICK, Sizes
from bench.report import report
from bench.results import Results, hardware
from bench.runner import in_turn
from bench.servers import OURS
from bootstrap.cache import Cache, open_cache

_NAMES = {"haproxy": HAPROXY, "bare": BARE, "litellm": LITELLM}
_QUICK_PEERS = ("bare",)


def main() -> int:
    """Do what the command line says; return the exit status, 1 when requests of ours failed."""
    return carry_out(_parse(), _run, _show, _plot, against.run)


def _run(args: argparse.Namespace) -> int:
    sizes = sizes_of(args, QUICK)
    check_limit_of_files(sizes.most_streams)
    cache = open_cache(os.environ)
    wire = compile_wire(cache.tools, os.environ)
    available = sorted(os.sched_getaffinity(0))
    processors = Processors.share_out(available)
    # what measures must not disturb what is measured
    os.sched_setaffinity(0, available[1:] or available)
    settings: dict[str, object] = {"processors": str(processors), **dataclasses.asdict(sizes)}
    results = Results("", settings)

    def save() -> None:
        if args.json:
            results.write(args.json)

    with upstream(wire, processors) as (port, family):
        found, versions = _peers(args, cache, port, sizes)
        results.machine = f"{hardware()}; {processors}\n{versions}"
        raw = Server(RAW, port, family)
        client = Client(wire, processors)
        runner = Runner(results, sizes, client, raw, save, time.sleep)
        try:
            _measure(args.scenario or list(LAYOUTS), found, raw, runner, wire, processors, sizes)
        finally:  # figures are worth keeping, also when the last load could not run
            print(file=sys.stderr)
            if results.rows:
                save()
                _show(results)
    failed = [row for row in results.rows if row.server == OURS and row.outcome.errors]
    return 1 if failed else 0


def _measure(
    names: Sequence[str],
    found: Sequence[Peer],
    raw: Server,
    runner: Runner,
    wire: Wire,
    processors: Processors,
    sizes: Sizes,
) -> None:
    loads = {ANSWERS: runner.on_answers, CHUNKS: runner.on_chunks, PACED: runner.on_paced}
    if any(name in loads for name in names):
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(peer.running(wire, processors)) for peer in found]
            for name, load in loads.items():
                if name in names:
                    load([raw, *servers])
    if START in names or OPEN in names:
        for turn in range(sizes.stream_rounds):
            for peer in in_turn(found, turn):
                with peer.running(wire, processors) as server:
                    runner.on_fresh(server, names, turn)


def _peers(
    args: argparse.Namespace, cache: Cache, port: int, sizes: Sizes
) -> tuple[list[Peer], str]:
    """Return ours and the peers that are asked for and can be had, and their versions in a line."""
    wanted = args.peers if args.peers is not None else _QUICK_PEERS if args.quick else _NAMES
    found = [peers.ours(port, sizes.most_streams)]
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("uvicorn", "aiohttp", "uvloop")
    ]
    if "bare" in wanted:
        found.append(peers.bare(port))
    if "haproxy" in wanted:
        try:
            program = haproxy.find(cache.tools, os.environ)
            versions.append(f"haproxy {program.version()}")
            found.append(peers.haproxy(port, sizes.most_streams, program))
        except haproxy.NotFound as error:
            print(f"bench: measured without haproxy: {error}", file=sys.stderr)
    if "litellm" in wanted:
        environment = litellm_environment.ensure(cache, os.environ)
        versions.append(f"LiteLLM {litellm_environment.version()}")
        found.append(peers.litellm(port, environment))
    return found, ", ".join(versions)


def _show(results: Results) -> None:
    print(report(results, LAYOUTS), goals_table(results), sep="\n\n")


def _plot(results: Results, folder: Path) -> list[Path]:
    return write_plots(results, folder, LAYOUTS, COLOURS)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.proxy", description=__doc__)
    _add_run(add_commands(parser, "load", add_against, against.add_proxy))
    args = parser.parse_args()
    for name in getattr(args, "scenario", ()):
        if name not in LAYOUTS:
            parser.error(f"no load is called {name}: choose from {', '.join(LAYOUTS)}")
    for name in getattr(args, "peers", None) or ():
        if name not in _NAMES:
            parser.error(f"no peer is called {name}: choose from {', '.join(_NAMES)}")
    return args


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("scenario", nargs="*", metavar="LOAD", help=f"{', '.join(LAYOUTS)}; by default all.")
    add("--json", type=Path, help="Write all figures to this file.")
    add("--peers", type=_words, help=f"Of {','.join(_NAMES)}; by default all, none: only ours.")
    add("--quick", action="store_true", help="Small, beside the bare one: to see that it works.")
    add_sizes(parser, Sizes)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word not in {"", "none"})


if __name__ == "__main__":
    sys.exit(main())
