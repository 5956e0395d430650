"""What one thing alone does to the figures of a task whose sets differ in that: sentences, from the records."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vssn.experiments.records import Record
from vssn.experiments.report_standings import Row, best_row, rows_cited
from vssn.experiments.report_tables import values_of
from vssn.experiments.report_words import listed
from vssn.experiments.tasks.base import Column, Shift, Task


def shifts(task: Task, done: Sequence[Record]) -> list[str]:
    """A sentence a line: by how much each model moves, and how far published figures are from the best row of either
    set; none where no model has been run on both."""
    if task.shift is None:
        return []
    before, after = (
        next(column for column in task.columns if column.set == name) for name in (task.shift.before, task.shift.after)
    )
    moves = [
        move
        for model in dict.fromkeys(entry.model for entry in task.entries)
        if (move := _move(task.shift, done, model, before, after))
    ]
    if not moves:
        return []
    said = [f"From {before.header} to {after.header}, {task.shift.what} alone moves {'; '.join(moves)}."]
    best = [best_row(task, done, column) for column in (before, after)]
    cited = rows_cited(task, next(column for column in task.columns if column.published == task.shift.cited))
    if cited and all(best):
        said.append(_beside(task.shift, cited, before, after, [row for row in best if row]))
    return [f"- {sentence}" for sentence in said]


def _move(shift: Shift, done: Sequence[Record], model: str, before: Column, after: Column) -> str:
    values = [values_of(done, model, column) for column in (before, after)]
    if not all(values):
        return ""
    was, now = map(statistics.fmean, values)
    digits = after.digits
    together = f"{shift.frames} steps, the time of one before, {shift.frames * now:.{digits}f}"
    return f"**{model}** by {now - was:+.{digits}f} {shift.unit} ({was:.{digits}f} to {now:.{digits}f}; {together})"


def _beside(shift: Shift, cited: Sequence[Row], before: Column, after: Column, best: Sequence[Row]) -> str:
    digits = after.digits
    where = " and ".join(
        f"{column.header} ({row.shown} {row.label})" for column, row in zip((before, after), best, strict=True)
    )
    gaps = listed(
        f"{row.label} {' and '.join(f'{row.value - own.value:+.{digits}f}' for own in best)}" for row in cited
    )
    return f"Published figures beside the best row here on {where}, in {shift.unit}: {gaps}."
