"""The grid as a picture: a heat map of ratios for each machine, pass and thread count."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.gru_grid_rows import LEAST_MEDIAN, PASSES, Cell, Row, by_machine

FURTHEST = 4.0  # the ratio, and its inverse, at which the colours end
NORM = LogNorm(1 / FURTHEST, FURTHEST)
COLOURS = colormaps["RdBu"]  # red: nn.GRU is faster; blue: this library
TICKS = (0.25, 0.5, 0.7, 1, 1.4, 2, 4)
LEGEND = (
    f"framed: the whole interval lies below 1;  bold: the median lies below {LEAST_MEDIAN};  "
    "out: left out, the CSV says why;  hatched: not measured"
)
LEFT_OUT, MISSING, ALARM = "0.8", "0.9", "#b00000"


def plot(rows: Iterable[Row], path: Path) -> Path:
    """Writes the PNG: a line of panels for each machine. Raises ValueError where there are no rows."""
    machines = by_machine(rows)
    if not machines:
        raise ValueError("there are no rows to draw")
    every = [row for own in machines.values() for row in own]
    panels = [(run, count) for run in PASSES for count in sorted({row.threads for row in every if row.run == run})]
    lines = sorted({(row.T, row.B) for row in every})
    columns = sorted({row.H for row in every})
    width, height = max(0.5 + 0.66 * len(columns), 2.7), 1.9 + 0.33 * len(lines)
    figure = Figure(figsize=(max(width * len(panels) + 2.4, 10), height * len(machines) + 0.3), layout="constrained")
    parts = figure.subfigures(len(machines), 1, squeeze=False)[:, 0]
    for part, ((processor, isa), own) in zip(parts, machines.items(), strict=True):
        versions = ", ".join(sorted({row.torch for row in own}))
        part.suptitle(f"nn.GRU's time over vssn.GRU's: {processor}, {isa}, torch {versions}", fontsize=12)
        axes = list(part.subplots(1, len(panels), squeeze=False)[0])
        for axis, (run, count) in zip(axes, panels, strict=True):
            found = {row.cell: row for row in own}
            _panel(axis, found, lines, columns, run, count)
            if axis is not axes[0]:
                axis.set_yticks([])
            axis.set_title(f"{run}, {count} thread{'s' * (count > 1)}", fontsize=11)
        bar = part.colorbar(ScalarMappable(NORM, COLOURS), ax=axes, ticks=TICKS, extend="both", pad=0.01)
        bar.ax.set_yticklabels([f"{tick:g}x" for tick in TICKS])
        bar.ax.minorticks_off()
        bar.set_label("above 1 vssn.GRU is faster", fontsize=11)
        part.supxlabel(LEGEND, fontsize=10)
    figure.savefig(path, dpi=110)
    return path


def _panel(
    axis: Axes, found: dict[Cell, Row], lines: list[tuple[int, int]], columns: list[int], run: str, threads: int
) -> None:
    for down, (steps, batch) in enumerate(lines):
        for right, hidden in enumerate(columns):
            row = found.get(Cell(steps, batch, hidden, run, threads))
            _square(axis, right, down, row)
        if down and lines[down - 1][0] != steps:
            axis.axhline(down - 0.5, color="black", linewidth=1.5)
    axis.set_xticks(range(len(columns)), [str(hidden) for hidden in columns])
    axis.set_yticks(range(len(lines)), [f"T={steps} B={batch}" for steps, batch in lines])
    axis.set(xlabel="H", xlim=(-0.5, len(columns) - 0.5), ylim=(len(lines) - 0.5, -0.5))
    axis.tick_params(length=0, labelsize=10)


def _square(axis: Axes, right: int, down: int, row: Row | None) -> None:
    """A ratio in its colour; framed where its interval lies below 1, red and bold where the median is too low."""
    if row is None or row.ratio is None:
        colour, label = (to_rgba(MISSING), "") if row is None else (to_rgba(LEFT_OUT), "out")
        ink, weight, hatch = "black", 400, "///" if row is None else ""
    else:
        colour = COLOURS(NORM(min(max(row.ratio, 1 / FURTHEST), FURTHEST)))
        ink = "white" if abs(math.log(row.ratio)) > 0.6 * math.log(FURTHEST) else "black"
        label = f"{row.ratio:.2f}" if row.ratio < 9.95 else f"{row.ratio:.0f}"
        weight, hatch = (700 if row.ratio < LEAST_MEDIAN else 400), ""
    place = (right - 0.5, down - 0.5)
    axis.add_patch(Rectangle(place, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8, hatch=hatch))
    if row is not None and row.high is not None and row.high < 1:
        frame = Rectangle((right - 0.45, down - 0.42), 0.9, 0.84, fill=False, edgecolor=ALARM, linewidth=2)
        axis.add_patch(frame)
    axis.text(right, down, label, ha="center", va="center", fontsize=10, color=ink, weight=weight)
