"""Charts of what a model gives: fan charts of series, and piano rolls. Each function writes one PNG.

Colours: the Okabe-Ito palette for lines and classes, viridis for what grows: told apart in every common form of colour
blindness, and in grey.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vssn.utils.command import replacing
from vssn.utils.packages import needing

with needing("train"):
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.text import Text


BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f"
LINES = (BLUE, ORANGE, GREEN, PINK, "#e69f00", "#56b4e9", "black", GREY)
MARKERS = "osD^vP*X"
DPI = 130
BANDS = (0.8, 0.5)  # of a fan: the wider one first
MOST_PANELS = 6
_Array = np.ndarray[Any, Any]


class Fan(NamedTuple):
    """One series: what is known, and what the model says of the rest."""

    label: str  # of the values' axis: the channel, and its unit where there is one
    times: _Array  # [T] of the history: datetime64 or numbers
    history: _Array  # [T], NaN where missing
    ahead: _Array  # [H] times of what the model gives
    samples: _Array  # [S, H]
    truth: _Array | None = None  # [H] where it is known


def draw_fans(
    path: str | Path,
    fans: Sequence[Fan],
    *,
    title: str,
    time_label: str = "time",
    model_label: str = "median forecast",
    scattered: bool = False,
) -> None:
    """A fan chart a series, one above the other: history, median, and the bands that hold 50% and 80% of the samples.

    Args:
        path: of the PNG; its folder is there.
        fans: one at least, of which MOST_PANELS are drawn, with one time axis.
        title: of the figure.
        time_label: of the time axis, with its unit.
        model_label: of the median in the legend.
        scattered: what the model gives stands in gaps of the history: its times that follow each other are joined.
    """
    shown = fans[:MOST_PANELS]
    figure = Figure(figsize=(9, 0.9 + (3.1 if len(shown) == 1 else 2.0 * len(shown))), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, fan in zip(axes, shown, strict=True):
        known = "observed" if scattered else "history"
        axis.plot(fan.times, fan.history, color="0.15", linewidth=1.2, label=known if len(fan.times) else None)
        alone = _alone(fan.history)
        axis.plot(fan.times[alone], fan.history[alone], ".", color="0.15", markersize=3)
        for number, part in enumerate(_runs(fan, scattered)):
            ahead, samples, named = fan.ahead[part], fan.samples[:, part], number == 0
            for band, alpha in zip(BANDS if len(samples) > 1 else (), (0.18, 0.38), strict=False):
                ends = np.quantile(samples, ((1 - band) / 2, (1 + band) / 2), axis=0)
                wide, (low, high) = _widened(ahead, ends, fan.times)
                label = f"{band:.0%} interval" if named else None
                axis.fill_between(wide, low, high, color=BLUE, alpha=alpha, linewidth=0, label=label)
            wide, (median,) = _widened(ahead, np.median(samples, 0)[None], fan.times)
            axis.plot(wide, median, color=BLUE, linewidth=1.8, label=model_label if named else None)
        if fan.truth is not None:
            axis.plot(fan.ahead, fan.truth, color=ORANGE, linewidth=1.2, linestyle="--", label="truth")
        if not scattered and len(fan.ahead) and len(fan.times):
            axis.axvline(fan.ahead[0], color="0.6", linewidth=0.8, linestyle=":")
        axis.set_ylabel(fan.label)
        plain(axis)
    if shown[0].times.dtype.kind == "M":
        locator = AutoDateLocator()
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes[-1].set_xlabel(time_label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    more = f" ({len(shown)} of {len(fans)} channels)" if len(fans) > len(shown) else ""
    axes[0].set_title(title + more, fontsize=11, loc="left", pad=10)
    save(figure, path)


def _widened(ahead: _Array, values: _Array, times: _Array) -> tuple[_Array, _Array]:
    """A single time [1] and its values [., 1] as a step's width, so that it shows; more of them as they are."""
    if len(ahead) != 1:
        return ahead, values
    half = np.diff(times).min() / 2 if len(times) > 1 else ahead[0] - ahead[0]
    return np.array((ahead[0] - half, ahead[0] + half)), values.repeat(2, -1)


def _alone(history: _Array) -> _Array:
    """[T] values that no line would show: missing ones on both sides."""
    missing = np.concatenate(([True], np.isnan(history), [True]))
    return np.asarray(missing[:-2] & missing[2:] & ~missing[1:-1])


def _runs(fan: Fan, scattered: bool) -> list[slice]:
    """The parts of `ahead` that one band covers: between two of them something is observed."""
    if not len(fan.ahead):
        return []
    if not scattered:
        return [slice(None)]
    place = np.searchsorted(fan.times, fan.ahead)
    cuts = [0, *(np.flatnonzero(np.diff(place) > 1) + 1).tolist(), len(fan.ahead)]
    return [slice(first, end) for first, end in itertools.pairwise(cuts)]


def draw_rolls(rolls: Mapping[str, Tensor], path: str | Path, *, title: str, lowest_note: int = 21) -> None:
    """Piano rolls one above the other, on common axes.

    Args:
        rolls: by name, [T, X] in [0, 1]: notes, or the probabilities of notes.
        lowest_note: the MIDI number of column 0.
    """
    sounding = torch.stack([roll.ne(0).any(0) if _binary(roll) else (roll > 0.05).any(0) for roll in rolls.values()])
    keys = sounding.any(0).nonzero().flatten()
    low, high = (int(keys[0]) - 2, int(keys[-1]) + 3) if len(keys) else (0, next(iter(rolls.values())).shape[1])
    low, high = max(low, 0), min(high, next(iter(rolls.values())).shape[1])
    steps = max(len(roll) for roll in rolls.values())
    figure = Figure(figsize=(9, 0.6 + 2.1 * len(rolls)), layout="constrained")
    axes = figure.subplots(len(rolls), 1, sharex=True, squeeze=False)
    shown = None
    for axis, (name, roll) in zip(axes[:, 0], rolls.items(), strict=True):
        extent = (0.5, len(roll) + 0.5, lowest_note + low - 0.5, lowest_note + high - 0.5)
        image = axis.imshow(
            roll[:, low:high].T.float().numpy(),
            aspect="auto",
            origin="lower",
            extent=extent,
            cmap="Greys" if _binary(roll) else "viridis",
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        shown = image if not _binary(roll) else shown
        axis.set_title(name, fontsize=10, loc="left")
        axis.set(ylabel="MIDI note", xlim=(0.5, steps + 0.5))
        octaves = [note for note in range(lowest_note + low, lowest_note + high) if note % 12 == 0]
        axis.set_yticks(octaves)
        for note in octaves:  # between B and C, where no note is crossed
            axis.axhline(note - 0.5, color="0.8" if _binary(roll) else "0.4", linewidth=0.5)
    axes[-1, 0].set_xlabel("time step")
    if shown is not None:
        figure.colorbar(shown, ax=axes, label="probability of the note", pad=0.01, aspect=30)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _binary(roll: Tensor) -> bool:
    return bool(((roll == 0) | (roll == 1)).all())


def plain(axis: Any) -> None:
    """The house's axes: a grid, and no frame above and to the right."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3, linewidth=0.5)


def save(figure: Figure, path: str | Path) -> None:
    """As a PNG, whole or not at all. Names stand there as they are: a `$` of theirs begins no formula."""
    ticks = {
        text
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)  # numbers, which have powers of ten
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for text in (tick.label1, tick.label2)
    }
    for text in figure.findobj(Text):
        if text not in ticks:
            text.set_parse_math(False)
    with replacing(Path(path)) as part:
        figure.savefig(part, dpi=DPI, format="png")
