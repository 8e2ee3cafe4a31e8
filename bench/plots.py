"""From results to plots: a PNG for each scenario, a bar for each server, its spread on top."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.engine_rate import BATCHED_BENCH, ENGINE
from bench.figures import Outcome, Spread, spread
from bench.report import LAYOUTS, Column, Layout
from bench.results import Results
from bench.runner import CHURNED, COLD, DEFAULT_MODE, DETERMINISTIC_MODE
from bench.servers import EXAMPLE_SERVER, LLAMA_SERVER, OURS
from bench.step_times import SETTINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FOOTER_CHARACTERS = 110  # of a line
# Who is in several plots has the same colour in all; what is ours is blue.
_COLOURS = {
    **dict.fromkeys((OURS, ENGINE, COLD, DEFAULT_MODE, SETTINGS[0]), "#1b6ca8"),
    **dict.fromkeys((CHURNED, DETERMINISTIC_MODE), "#8ab8dd"),
    LLAMA_SERVER: "#d1711c",
    EXAMPLE_SERVER: "#5f8f4e",
    BATCHED_BENCH: "#7a5c99",
}
# With other flags a peer is of a lighter shade.
_SHADES = {LLAMA_SERVER: "#f0b67c", BATCHED_BENCH: "#bda9d1"}
_OTHERS = ("#8ab8dd", "#2a9d8f", "#b5c7d3", "#888888")
_GREY = "#666666"
_WIDTH = 0.84  # of a case's bars together; a case is 1 wide
_PAGE_INCHES = 11.0
_BAR_INCHES = 0.4
_LETTER_INCHES = 0.08
_CASE_LETTERS = 13  # in a line below the bars, at least


def write_plots(
    results: Results,
    folder: Path,
    layouts: Mapping[str, Layout] = LAYOUTS,
    colours: Mapping[str, str] = _COLOURS,
) -> list[Path]:
    """Write a PNG for each scenario that has figures, and return their paths.

    `layouts` are those of the scenarios, `colours` those of the servers, by name.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in results.scenarios:
        figure = _figure(results, name, layouts[name], colours)
        paths.append(folder / f"{name}.png")
        # without the library's version, the same figures give the same file
        figure.savefig(paths[-1], dpi=130, metadata={"Software": None})
        plt.close(figure)
    return paths


def _figure(results: Results, name: str, layout: Layout, colours: Mapping[str, str]) -> Figure:
    from matplotlib import pyplot as plt

    title, found = layout.title, results.by_case(name)
    headlines = [column for column in layout.columns if column.is_headline]
    # bars stay wide enough for their figures: where two plots are too wide, one is below the other
    inches = max(3.4, 0.9 + _BAR_INCHES * len(found))
    is_wide = len(headlines) * inches > _PAGE_INCHES
    rows, columns = (len(headlines), 1) if is_wide else (1, len(headlines))
    width = max(6.0, columns * inches, _LETTER_INCHES * 1.3 * len(title))
    names = {server for _, server in found}
    in_a_row = int(width / (0.7 + _LETTER_INCHES * max(map(len, names))))
    in_a_row = min(max(1, in_a_row), len(names))
    head = 0.45 + 0.23 * -(-len(names) // in_a_row)
    foot = 0.3 + 0.12 * results.machine.count("\n")
    height = head + foot + 2.9 * rows
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    for axis, column in zip(axes.flat, headlines, strict=True):
        _draw(axis, found, layout.is_pooled, column, colours)
    figure.text(0.5, 1 - 0.1 / height, title, ha="center", va="top", fontsize=12, fontweight="bold")
    legend = figure.legend(
        *axes.flat[0].get_legend_handles_labels(),
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - 0.32 / height),
        ncols=in_a_row,
        fontsize=9,
        frameon=False,
    )
    legend.set_in_layout(False)  # its place is kept by `head`
    figure.text(0.99, 0.06 / height, _footer(results, name), ha="right", fontsize=7, color=_GREY)
    figure.tight_layout(rect=(0, foot / height, 1, 1 - head / height), h_pad=1.5, w_pad=2)
    return figure


def _draw(
    axis: Axes,
    found: dict[tuple[str, str], list[Outcome]],
    is_pooled: bool,
    column: Column,
    given: Mapping[str, str],
) -> None:
    cases = list(dict.fromkeys(case for case, _ in found))
    all_servers = list(dict.fromkeys(server for _, server in found))
    width = _WIDTH / len(all_servers)
    colours = colours_of(all_servers, given)
    for place, server in enumerate(all_servers):
        bars = [
            (at - _WIDTH / 2 + (place + 0.5) * width, figure)
            for at, case in enumerate(cases)
            if (case, server) in found
            and (figure := spread(found[case, server], column.figure, is_pooled))
        ]
        places, heights = [at for at, _ in bars], [figure.median for _, figure in bars]
        axis.bar(places, heights, 0.94 * width, color=colours[server], label=server)
        for at, figure in bars:
            _mark(axis, at, figure, column.digits)
    letters = max(_CASE_LETTERS, 40 // len(cases))
    axis.set_xticks(range(len(cases)), [textwrap.fill(case, letters) for case in cases], fontsize=9)
    room = max(0.0, 1 - len(found) / 4) / 2  # few bars are not wider than they need be
    axis.set_xlim(-0.5 - room, len(cases) - 0.5 + room)
    axis.set_title(column.axis or column.title, fontsize=10, pad=16)
    text = f"{column.better} is better"
    axis.text(0.5, 1.02, text, transform=axis.transAxes, ha="center", fontsize=8, color=_GREY)
    axis.margins(y=0.12)
    if column.is_log:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.tick_params(axis="y", labelsize=8)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _mark(axis: Axes, place: float, figure: Spread, digits: int) -> None:
    """Draw a bar's spread, and write its median above."""
    low, high = min(figure.low, figure.median), max(figure.high, figure.median)
    if high > low:
        lines = [[figure.median - low], [high - figure.median]]
        axis.errorbar(place, figure.median, lines, capsize=2.5, color="#333333", linewidth=0.9)
    text = f"{figure.median:,.{0 if figure.median >= 100 else digits}f}"
    axis.annotate(
        text, (place, high), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7
    )


def colours_of(names: Sequence[str], given: Mapping[str, str] = _COLOURS) -> dict[str, str]:
    """Return the colour of each server: the given one, the shade of its peer's, or the next."""
    colours: dict[str, str] = {}
    others = iter(_OTHERS * len(names))
    for name in names:
        known = given.get(name)
        shade = next((of for base, of in _SHADES.items() if name.startswith(f"{base} ")), None)
        colours[name] = known or shade or next(others)
    return colours


def _footer(results: Results, name: str) -> str:
    rounds = max(len(outcomes) for outcomes in results.by_case(name).values())
    kind = f"medians of {rounds} rounds, lowest and highest" if rounds > 1 else "1 round"
    lines = f"{kind}; {results.machine}".splitlines()
    return "\n".join(textwrap.fill(line, _FOOTER_CHARACTERS) for line in lines)
