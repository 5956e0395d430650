"""Figures of trained models. Each function writes one PNG, and takes plain tensors, so that anything can be drawn.

Colours: those of `vssn.output.charts`, and twilight for angles.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vssn.errors import DataError
from vssn.output.charts import BLUE, LINES, MARKERS, ORANGE, plain, save
from vssn.output.charts import draw_rolls as draw_rolls
from vssn.utils.command import replacing
from vssn.utils.packages import needing

with needing("train"):
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


MANY = 5  # curves; the names of more stand beside the axes
_DRAWN = {f"{split}/elbo_per_frame" for split in ("train", "valid")} | {
    f"valid/kl_{latent}_per_frame" for latent in ("z", "w")
}


class Plan(NamedTuple):
    """A film that goes on under one plan of actions."""

    label: str
    seen: Tensor  # [S, size * size] in [0, 1]
    truth: Tensor  # [K, size * size]
    imagined: Tensor  # [K, size * size]


def draw_plans(plans: Sequence[Plan], path: str | Path, *, size: int, title: str) -> None:
    """For every plan the truth above what a model imagined, a column per frame; the frames seen are framed in blue.

    Args:
        plans: of one length each.
        size: pixels along a side.
        title: of the figure.
    """
    steps = len(plans[0].seen) + len(plans[0].truth)
    figure = Figure(figsize=(0.62 * steps + 1.9, 1.35 * len(plans) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for part, plan in zip(figure.subfigures(len(plans), 1, squeeze=False)[:, 0], plans, strict=True):
        seen = len(plan.seen)
        axes = part.subplots(2, steps, squeeze=False)
        for row, frames in zip(axes, (torch.cat((plan.seen, plan.truth)), plan.imagined), strict=True):
            blank = steps - len(frames)
            for t, axis in enumerate(row):
                axis.set(xticks=[], yticks=[])
                if t < blank:
                    axis.axis("off")
                    continue
                axis.imshow(frames[t - blank].view(size, size).numpy(), cmap="gray", vmin=0, vmax=1)
                for spine in axis.spines.values():
                    spine.set(color=BLUE if t < seen else ORANGE, linewidth=1.5)
        axes[0][0].set_ylabel(f"{plan.label}\nsimulator", rotation=0, ha="right", va="center", fontsize=8)
        where = axes[1][seen - 1]
        where.text(1, 0.5, "imagined", transform=where.transAxes, ha="right", va="center", fontsize=8)
    save(figure, path)


def draw_film(truth: Tensor, predicted: Tensor, path: str | Path, *, seen: int, size: int, title: str) -> None:
    """Truth over prediction, a column per frame; frames from `seen` on were predicted without being seen.

    Args:
        truth, predicted: [T, size * size] in [0, 1]; a NaN frame of the prediction is left empty.
        seen: frames that the model had seen.
        size: pixels along a side.
        title: of the figure.
    """
    steps = len(truth)
    figure = Figure(figsize=(0.62 * steps + 0.9, 2.05))
    axes = figure.subplots(2, steps, gridspec_kw={"wspace": 0.08, "hspace": 0.08}, squeeze=False)
    for row, frames in zip(axes, (truth, predicted), strict=True):
        for t, axis in enumerate(row):
            axis.set(xticks=[], yticks=[])
            if not bool(torch.isnan(frames[t]).any()):
                axis.imshow(frames[t].view(size, size).numpy(), cmap="gray", vmin=0, vmax=1)
            for spine in axis.spines.values():
                spine.set(color=BLUE if t < seen else ORANGE, linewidth=1.5)
    for t in range(steps):
        axes[1][t].set_xlabel(t + 1, fontsize=8, labelpad=2)
    axes[0][0].set_ylabel("truth", rotation=0, ha="right", va="center", fontsize=9)
    axes[1][0].set_ylabel("model", rotation=0, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(left=0.9 / figure.get_figwidth() * 0.75, right=0.995, top=0.72, bottom=0.17)
    figure.suptitle(title, fontsize=10, y=0.97)
    # Each part's name stands above its middle column.
    parts = (("one-step predictions of frames then seen", BLUE, 0, seen), ("predicted unseen", ORANGE, seen, steps))
    for text, colour, first, end in parts:
        if end > first:
            left, right = (axes[0][t].get_position() for t in (first, end - 1))
            figure.text((left.x0 + right.x1) / 2, 0.75, text, color=colour, ha="center", va="bottom", fontsize=9)
    save(figure, path)


def draw_error_ahead(errors: Mapping[str, Sequence[float]], path: str | Path, *, title: str, unit: str) -> None:
    """A curve per name: the error 1, 2, ... frames ahead."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for (name, curve), colour, marker in zip(errors.items(), LINES, MARKERS, strict=False):
        axis.plot(range(1, len(curve) + 1), curve, color=colour, marker=marker, markersize=4, label=name)
    axis.set(xlabel="frames ahead", ylabel=unit, ylim=(0, None), title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    plain(axis)
    save(figure, path)


def draw_latents(latents: Tensor, angle: Tensor, velocity: Tensor, path: str | Path, *, title: str) -> None:
    """The two largest principal components of latent states, coloured by the angle and by the velocity.

    Args:
        latents: [N, Z].
        angle, velocity: [N], radians and radians per second.
    """
    centred = (latents - latents.mean(0)).double()
    _, scales, directions = torch.linalg.svd(centred, full_matrices=False)
    flat = centred @ directions[:2].T
    if flat.shape[1] == 1:  # a latent of one unit is drawn as a line
        flat = torch.cat((flat, torch.zeros_like(flat)), 1)
    shares = [*(scales**2 / (scales**2).sum().clamp(min=1e-300))[:2].tolist(), 0.0]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    limit = float(velocity.abs().max())
    angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    # Darkened: its lightest colour would not show on white.
    cyclic = ListedColormap(matplotlib.colormaps["twilight"](np.linspace(0, 1, 256)) * (0.82, 0.82, 0.82, 1))
    panels = (
        ("angle (radians, 0 is upright)", angle, cyclic, math.pi),
        ("angular velocity (radians per second)", velocity, matplotlib.colormaps["cividis"], limit),
    )
    for axis, (name, values, colours, bound) in zip(axes, panels, strict=True):
        points = axis.scatter(
            *flat.numpy().T, c=values.numpy(), s=4, cmap=colours, vmin=-bound, vmax=bound, linewidths=0
        )
        bar = figure.colorbar(points, ax=axis, label=name)
        if bound == math.pi:
            bar.set_ticks([-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi])
            bar.set_ticklabels(["-π", "-π/2", "0", "π/2", "π"])
        axis.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
        plain(axis)
    axes[0].set_ylabel(f"second component ({shares[1]:.0%})")
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def draw_training(runs: Mapping[str, str | Path], path: str | Path, *, title: str) -> None:
    """The curves of runs: the bound on training and validation data, and the KLs.

    Args:
        runs: for every name a run's folder, or a file that `keep_curves` wrote.

    Raises:
        FileNotFoundError: a folder without metrics.csv.
        DataError: that file holds something else.
    """
    logs = {name: read_metrics(folder) for name, folder in runs.items()}
    kl_names = (("valid/kl_z_per_frame", "-", "of z"), ("valid/kl_w_per_frame", "--", "of w"))
    with_kls = any(log[name].any() for log in logs.values() for name, *_ in kl_names)
    many = len(logs) > MANY
    figure = Figure(figsize=(5.5 + 4.5 * with_kls + 1.3 * many, 3.9), layout="constrained")
    axes = figure.subplots(1, 1 + with_kls, squeeze=False)
    bounds = axes[0, 0]
    for index, (name, log) in enumerate(logs.items()):
        colour, valid = LINES[index % len(LINES)], log["valid/elbo_per_frame"]
        dashes = "-" if index < len(LINES) else "-."  # a second round through the colours
        best = int(np.argmax(valid))
        bounds.plot(log["epoch"], log["train/elbo_per_frame"], color=colour, linestyle=":", linewidth=1.3)
        bounds.plot(log["epoch"], valid, color=colour, linestyle=dashes, label=name)
        bounds.plot(log["epoch"][best], valid[best], "o", color=colour, markersize=5)
        if with_kls:
            for column, style, _ in kl_names:
                axes[0, 1].plot(log["epoch"], log[column], color=colour, linestyle=style)
    # The first epochs are so far below that they would flatten the rest.
    low = min(float(np.quantile(log["valid/elbo_per_frame"], 0.15)) for log in logs.values())
    high = max(float(log[f"{split}/elbo_per_frame"].max()) for log in logs.values() for split in ("train", "valid"))
    if high > low:
        margin = 0.08 * (high - low)
        bounds.set_ylim(low - margin, high + margin)
    bounds.set(xlabel="epoch", ylabel="ELBO (nats per frame)", title="Strict bound")
    if many:
        figure.legend(frameon=False, fontsize=8, loc="outside right center")
    else:
        bounds.legend(frameon=False, fontsize=8, loc="lower right")
    if with_kls:
        axes[0, 1].set(xlabel="epoch", ylabel="KL (nats per frame)", title="Validation KL", ylim=(0, None))
        for _, style, label in kl_names:
            axes[0, 1].plot([], [], color="0.3", linestyle=style, label=label)
        axes[0, 1].legend(frameon=False, fontsize=8)
    for axis in axes[0]:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axis)
    figure.suptitle(f"{title}\nsolid: validation, the best epoch marked; dotted: training", fontsize=10)
    save(figure, path)


def read_metrics(folder: str | Path, also: Sequence[str] = ()) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """The columns of a run's metrics.csv.

    Args:
        folder: of the run; or a file that has the columns that are drawn.
        also: columns that must be there, beside those that are drawn.

    Raises:
        FileNotFoundError: there is none.
        DataError: it holds something else.
    """
    file = Path(folder)
    file = file / "metrics.csv" if file.is_dir() else file
    try:
        with open(file, newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
        found = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
        if all(np.isfinite(found[name]).all() for name in ("epoch", *also)) and found.keys() >= _DRAWN:
            return found
    except (IndexError, KeyError, TypeError, ValueError, csv.Error):
        pass
    raise DataError(f"{file}: expected the epochs of a run, got another text; mend it, or remove the run")


def keep_curves(folder: str | Path, path: str | Path) -> None:
    """Writes the columns that `draw_training` takes from a run's metrics.csv to a file, of 4 decimals.

    Raises:
        FileNotFoundError, DataError: as `read_metrics`.
    """
    log = read_metrics(folder)
    names = ["epoch", *sorted(_DRAWN)]
    epochs = zip(*(log[name] for name in names), strict=True)
    with replacing(Path(path)) as part, open(part, "w", newline="", encoding="utf-8") as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(names)
        rows.writerows([int(epoch), *(round(value, 4) for value in values)] for epoch, *values in epochs)
