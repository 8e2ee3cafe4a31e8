"""From results to plots: a PNG for each scenario, a bar for each server, its spread on top."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import spread
from bench.report import LAYOUTS, Column
from bench.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1b6ca8", "#d1711c", "#5f8f4e", "#888888")
_WIDTH = 0.8


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Write a PNG for each scenario that has figures, and return their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in results.scenarios:
        headlines = [column for column in LAYOUTS[name].columns if column.is_headline]
        size = (2.5 + 4 * len(headlines), 3.6)
        figure, axes = plt.subplots(1, len(headlines), figsize=size, squeeze=False)
        for axis, column in zip(axes[0], headlines, strict=True):
            _draw(axis, results, name, column)
        handles = axes[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="lower left", ncols=4, fontsize=8, frameon=False)
        figure.suptitle(LAYOUTS[name].title, fontsize=11)
        figure.text(0.99, 0.02, results.machine, ha="right", fontsize=6, color="#666666")
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        paths.append(folder / f"{name}.png")
        # without the library's version, the same figures give the same file
        figure.savefig(paths[-1], dpi=110, metadata={"Software": None})
        plt.close(figure)
    return paths


def _draw(axis: Axes, results: Results, name: str, column: Column) -> None:
    found = results.by_case(name)
    cases = list(dict.fromkeys(case for case, _ in found))
    all_servers = list(dict.fromkeys(server for _, server in found))
    width = _WIDTH / len(all_servers)
    for place, server in enumerate(all_servers):
        bars = [
            (at, figure)
            for at, case in enumerate(cases)
            if (case, server) in found
            and (figure := spread(found[case, server], column.figure, LAYOUTS[name].is_pooled))
        ]
        heights = [figure.median for _, figure in bars]
        below = [max(0.0, figure.median - figure.low) for _, figure in bars]
        above = [max(0.0, figure.high - figure.median) for _, figure in bars]
        places = [at - _WIDTH / 2 + (place + 0.5) * width for at, _ in bars]
        colour = _COLOURS[place % len(_COLOURS)]
        spreads = [below, above]
        axis.bar(places, heights, width, yerr=spreads, capsize=2, color=colour, label=server)
    axis.set_xticks(range(len(cases)), cases, fontsize=8)
    axis.set_ylabel(column.title, fontsize=9)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
