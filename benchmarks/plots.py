"""PNG plots of the results: over H, over T, and of memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.peers import OURS
from benchmarks.problem import BACKWARD, FORWARD
from benchmarks.results import Measured, Row, by_processor, newest, with_all_threads


def letter(case: str, name: str) -> int:
    """The value of a size in a case's name: letter("T=64 B=32", "B") is 32."""
    return int(dict(part.split("=") for part in case.split() if "=" in part)[name])


def side_by_side(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.6 * panels, 3.8), layout="tight")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def plot(path: Path, panels: list[tuple[str, list[Row], str]], ylabel: str, processor: str) -> None:
    """A panel for each (title, rows, letter of the horizontal axis): time per step of all, and the limit."""
    figure, axes = side_by_side(len(panels))
    figure.suptitle(processor, fontsize=9)
    names = dict.fromkeys(row.contestant for _, rows, _ in panels for row in rows)
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    for axis, (title, rows, name) in zip(axes, panels, strict=True):
        for contestant in dict.fromkeys(row.contestant for row in rows):
            own = sorted((r for r in rows if r.contestant == contestant), key=lambda r: letter(r.case, name))
            sizes = [letter(row.case, name) for row in own]
            style: dict[str, Any] = {"linewidth": 2.2, "zorder": 3} if contestant == OURS else {"linewidth": 1.2}
            axis.plot(
                sizes,
                [row.us_per_step or math.nan for row in own],
                marker="o",
                markersize=4,
                label=contestant,
                color=colours[contestant],
                **style,
            )
        ours = sorted((r for r in rows if r.contestant == OURS and r.limit), key=lambda r: letter(r.case, name))
        limits = [1e3 * row.limit / row.steps for row in ours if row.limit and row.steps]
        if limits:
            axis.plot([letter(row.case, name) for row in ours], limits, "k--", linewidth=1, label="limit")
        axis.set(title=title, xlabel=name, xscale="log", yscale="log", ylabel=ylabel)
        axis.set_xticks(sorted({letter(row.case, name) for row in rows}))
        axis.get_xaxis().set_major_formatter("{x:.0f}")
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_memory(path: Path, rows: list[Row], processor: str) -> None:
    """Bars: memory of each contestant in each case."""
    whats = list(dict.fromkeys(row.run for row in rows))
    figure, axes = side_by_side(len(whats))
    figure.suptitle(processor, fontsize=9)
    for axis, what in zip(axes, whats, strict=True):
        of_what = [row for row in rows if row.run == what]
        cases = list(dict.fromkeys(row.case for row in of_what))
        names = list(dict.fromkeys(row.contestant for row in of_what))
        width = 0.8 / len(names)
        for number_of, name in enumerate(names):
            values = {row.case: row.median for row in of_what if row.contestant == name}
            places = [place + number_of * width for place in range(len(cases))]
            axis.bar(places, [values.get(case) or 0 for case in cases], width, label=name)
        ticks = [place + 0.4 - width / 2 for place in range(len(cases))]
        axis.set_xticks(ticks, [case.partition(":")[0] for case in cases])
        axis.set(title=what, ylabel="MB")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plots(measured: Measured, folder: Path, device: str) -> list[Path]:
    """Writes the plots that the results have data for, each of the processor that it was measured on last."""
    found: dict[Path, None] = {}
    for processor, own in reversed(by_processor(measured).items()):
        rows = [row for _, row in with_all_threads(newest(own))]
        found |= dict.fromkeys(_plots(rows, folder, device, processor))
    return list(found)


def _plots(rows: list[Row], folder: Path, device: str, processor: str) -> list[Path]:
    found = []
    panels = []
    for family in ("gru_sequence", "gru"):
        for run in (FORWARD, BACKWARD):
            own = [r for r in rows if r.suite == "ops" and (r.family, r.run) == (family, run)]
            largest = max((letter(row.case, "B") for row in own), default=0)
            own = [row for row in own if letter(row.case, "B") == largest]
            if len({row.case for row in own}) > 1:
                panels.append((f"{family}, B={largest}, {run}", own, "H"))
    if panels:
        found.append(folder / f"{device}_over_h.png")
        plot(found[-1], panels, "us per step", processor)
    panels = []
    for family, run in (("gru", BACKWARD), ("train_step", BACKWARD)):
        own = [r for r in rows if r.suite == "scaling T" and (r.family, r.run) == (family, run)]
        if len({row.case for row in own}) > 1:
            panels.append((f"{family}, {run}", own, "T"))
    if panels:
        found.append(folder / f"{device}_over_t.png")
        plot(found[-1], panels, "us per step", processor)
    if own := [row for row in rows if row.suite == "memory" and row.family == "train_step"]:
        found.append(folder / f"{device}_memory.png")
        plot_memory(found[-1], own, processor)
    return found
