"""The figures of the page: those that the runs of this machine drew, and those that records tell, whose runs may be
gone: the curves of training, and what a task draws of its scores.

A page that keeps its records keeps the curves of their training beside them, RUN.csv. A figure of them is drawn where
most of the set's models have one; else the figure that stands is left, which shows runs of before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from vssn.experiments.figures import draw_training, keep_curves
from vssn.experiments.jobs import Settings
from vssn.experiments.records import Record
from vssn.experiments.tasks.base import TRAINING, Task


def figures_of(
    task: Task, records: Mapping[str, Record], settings: Settings, page: Path, archive: Path | None
) -> dict[str, str]:
    """What shows the figures of a task, by their names; they are copied beside the page, or into its archive.

    Args:
        records: of its runs, by the names of those.
        archive: the folder of a page that keeps its records, in `runs` of it.
    """
    runs = settings.output / settings.budget / task.name
    prefix = page.parent / f"{page.stem}-{task.name}" if archive is None else archive / task.name
    found = _copies(task.name, runs / "figures", prefix, keeps=archive is not None)
    if archive is not None:
        kept = archive / "runs" / task.name
        done = {name: record for name, record in records.items() if "metrics" in record}
        for name in done:
            if (runs / name / "metrics.csv").is_file():
                keep_curves(runs / name, kept / f"{name}.csv")
        first = _first_seeds(task, done)
        _draw_curves(task, {key: kept / f"{name}.csv" for key, (name, _) in first.items()}, prefix)
        if first and task.draw_scores is not None:
            task.draw_scores({key: record["metrics"] for key, (_, record) in first.items()}, archive)
        found |= set(archive.glob(f"{task.name}-*.png"))
    lines = {}
    for figure in sorted(found):
        name = figure.stem.removeprefix(f"{prefix.name}-")
        address = quote(figure.relative_to(page.parent).as_posix())
        lines[name] = f"![{task.title}: {name.replace('-', ', ')}]({address})\n"
    return lines


def _first_seeds(task: Task, done: Mapping[str, Record]) -> dict[tuple[str, str], tuple[str, Record]]:
    """The run of the first seed of every (set, model), and its record; in the order of the task."""
    first = {}
    for key in ((entry.set, entry.model) for entry in task.entries):
        own = [named for named in done.items() if (named[1]["set"], named[1]["model"]) == key]
        if own:
            first[key] = min(own, key=lambda named: named[1]["seed"])
    return first


def _copies(table: str, figures: Path, prefix: Path, *, keeps: bool) -> set[Path]:
    """Copies what the runs of a table drew to PREFIX-NAME.png: those. Not what is drawn from what is kept."""
    copies = set()
    for figure in figures.glob("*.png"):
        if keeps and figure.stem.endswith(TRAINING):
            continue
        copies.add(copy := _place(prefix, table, figure.stem))
        shutil.copyfile(figure, copy)
    return copies


def _draw_curves(task: Task, curves: Mapping[tuple[str, str], Path], prefix: Path) -> None:
    """A figure for each set of which most curves are there."""
    for name in task.sets:
        models = {model: path for (here, model), path in curves.items() if here == name}
        known = {model: path for model, path in models.items() if path.is_file()}
        if 2 * len(known) > len(models):
            some = "" if len(known) == len(models) else f", {len(known)} of {len(models)} models"
            draw_training(known, _place(prefix, task.name, f"{name}-{TRAINING}"), title=f"{name}{some}")


def _place(prefix: Path, table: str, figure: str) -> Path:
    return prefix.with_name(f"{prefix.name}-{figure.removeprefix(f'{table}-')}.png")
