"""What both commands, `bench` and `bench.proxy`, have on their command lines."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from bench.bare_engine import EngineFailed
from bench.results import Results, merged, read_results
from bench.servers import ServerFailed
from bootstrap.errors import BootstrapError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Sizes = TypeVar("Sizes", bound="DataclassInstance")


def carry_out(
    args: argparse.Namespace,
    run: Callable[[argparse.Namespace], int],
    show: Callable[[Results], None],
    plot: Callable[[Results, Path], Sequence[Path]],
    against: Callable[[argparse.Namespace], int],
) -> int:
    """Do what the command line says; return the exit status, 1 after a failure told in a line."""
    # the servers end with us, and what was measured is shown
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        if args.command == "against":
            return against(args)
        if args.command == "run":
            return run(args)
        results = merged([read_results(path) for path in args.results])
        if args.command == "plot":
            print(*plot(results, args.folder), sep="\n")
        else:
            show(results)
    except (ServerFailed, EngineFailed, BootstrapError, msgspec.MsgspecError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def add_commands(
    parser: argparse.ArgumentParser,
    unit: str,
    *add_against: Callable[[argparse.ArgumentParser], None],
) -> argparse.ArgumentParser:
    """Add `run`, whose parser is returned, `against`, and `table` and `plot` of earlier runs.

    `unit` is what is plotted in a file of its own; `add_against` add the flags of `against`.
    """
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="Measure, and print the tables.")
    against = commands.add_parser(
        "against",
        help="Measure this commit beside an older one, and print the ratios.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for add in add_against:
        add(against)
    table = commands.add_parser("table", help="Print the tables of a run again.")
    plot = commands.add_parser("plot", help=f"Plot a run: a PNG for each {unit}.")
    for command in (table, plot):
        command.add_argument(
            "results",
            nargs="+",
            type=Path,
            help=f"What `run --json` wrote. Of several files, the last that has a {unit} counts.",
        )
    plot.add_argument("folder", type=Path, help="Where the plots go.")
    return run


def add_sizes(parser: argparse.ArgumentParser, sizes: type[DataclassInstance]) -> None:
    """Add a flag for each field of a dataclass of numbers and tuples of integers."""
    for item in dataclasses.fields(sizes):
        kind = _integers if isinstance(item.default, tuple) else type(item.default)
        flag = f"--{item.name.replace('_', '-')}"
        # suppressed: the help would say that the default is None
        text = f"Size, {item.default} by default."
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=text)


def sizes_of(args: argparse.Namespace, quick: Sizes) -> Sizes:
    """Return the sizes that were given, the others as by default or, with `--quick`, as `quick`."""
    names = {item.name for item in dataclasses.fields(quick)}
    given = {name: value for name, value in vars(args).items() if name in names}
    return dataclasses.replace(quick if args.quick else type(quick)(), **given)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
