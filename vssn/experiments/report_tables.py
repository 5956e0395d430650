"""The tables of a task on the page, and the runs behind them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from vssn.experiments.records import Record
from vssn.experiments.report_words import MISSING, listed, notes_of
from vssn.experiments.tasks.base import Column, Published, Task


def values_of(done: Sequence[Record], model: str | None, column: Column) -> list[float]:
    """What the runs of a model score in a column; None: of all models."""
    own = [record for record in done if model in (None, record["model"]) and record["set"] == column.set]
    return _metric(own, column.metric)


def values_beside(task: Task, done: Sequence[Record], column: Column) -> dict[str, list[float]]:
    """The same of what stands beside the models in their records, by its name."""
    found = {
        baseline.model: values_of(done, None, column._replace(metric=f"{baseline.prefix}_{column.metric}"))
        for baseline in task.baselines
    }
    return {name: values for name, values in found.items() if values}


def as_printed(published: Published, column: Column) -> str:
    return published.values.get(column.published, MISSING).replace(">=", "≥ ").replace("~", "~ ")


def cell(values: Sequence[float], digits: int) -> str:
    """Their mean and standard deviation."""
    if not values:
        return MISSING
    finite = all(map(math.isfinite, values))
    spread = f" ± {statistics.stdev(values) if finite else math.nan:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main_table(task: Task, done: Sequence[Record]) -> list[str]:
    """Our rows, what stands beside them, the published rows that compare and the paper's own."""
    shown = [row for row in task.published if _in_the_open(task, row)]
    return _table(task, done, task.columns, shown)


def further_tables(task: Task, done: Sequence[Record]) -> list[str]:
    """Other scores of the same rows; the published rows that do not compare."""
    lines = []
    for table in task.tables:
        lines += [f"{table.title}:", "", *_table(task, done, table.columns, ()), ""]
    hidden = [row for row in task.published if not _in_the_open(task, row)]
    if hidden:
        headers = ["model", *(column.header for column in task.columns)]
        title = "Published on other terms, or on terms that are not known here:"
        lines += [title, "", *markdown(headers, _published_rows(hidden, task.columns)), ""]
    return lines


def _table(task: Task, done: Sequence[Record], columns: Sequence[Column], published: Sequence[Published]) -> list[str]:
    rows: list[list[str]] = []
    for model in dict.fromkeys(entry.model for entry in task.entries):
        if any(record["model"] == model for record in done):
            cells = (cell(values_of(done, model, column), column.digits) for column in columns)
            rows.append([f"**{model}**", *cells])
    beside = [values_beside(task, done, column) for column in columns]
    for baseline in task.baselines:
        if any(baseline.model in found for found in beside):
            cells = (
                cell(found.get(baseline.model, ()), column.digits)
                for found, column in zip(beside, columns, strict=True)
            )
            rows.append([baseline.model, *cells])
    headers = ["model", *(column.header for column in columns)]
    return markdown(headers, (*rows, *_published_rows(published, columns)))


def _in_the_open(task: Task, row: Published) -> bool:
    return task.cites_all or row.comparable or row.model == "VSSN"


def _published_rows(published: Sequence[Published], columns: Sequence[Column]) -> list[list[str]]:
    rows = []
    for row in published:
        source = row.source + (f"; {row.note}" if row.note else "")
        rows.append([f"*{row.model}* ({source})", *(as_printed(row, column) for column in columns)])
    return rows


def runs_table(task: Task, done: Sequence[Record]) -> list[str]:
    """What each figure was made of."""
    details = [detail for detail in task.details if any(detail.metric in record["metrics"] for record in done)]
    headers = ["set, model", *(detail.header for detail in details)]
    headers += ["seeds", "parameters", "best epochs", "training, minutes", "scoring, minutes"]
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(done, key=lambda record: record["seed"]):
        groups.setdefault((record["set"], record["model"]), []).append(record)
    order = [(entry.set, entry.model) for entry in task.entries]
    rows = []
    for name in sorted(groups, key=lambda name: order.index(name) if name in order else len(order)):
        group = groups[name]
        rows.append(
            [
                f"{name[0]}, {name[1]}",
                *(cell(_metric(group, detail.metric), detail.digits) for detail in details),
                listed(record["seed"] for record in group),
                f"{group[0]['parameters']:,}",
                listed(f"{record['best_epoch']}/{record['epochs']}" for record in group),
                listed(f"{record['train_seconds'] / 60:.1f}" for record in group),
                listed(f"{record['score_seconds'] / 60:.1f}" for record in group),
            ]
        )
    return markdown(headers, rows)


def how_made(task: Task, done: Sequence[Record]) -> str:
    """The command that makes the runs again, and where they were made."""
    seeds, threads = 1 + max(record["seed"] for record in done), max(record["threads"] for record in done)
    command = f"vssn reproduce {task.name} --budget {done[0]['budget']} --seeds {seeds} --threads {threads}"
    if task.reads_data:
        command += " --data FOLDER"
    made = dict.fromkeys(
        f"{record['machine']}, {record['threads']} threads; {record['versions']}; {record['date']}" for record in done
    )
    said = f"`{command}` makes all of it, `--only SET-MODEL` a part. Made on: {'. '.join(made)}."
    return " ".join((said, *notes_of(task, done)))


def not_run(task: Task, records: Sequence[Record]) -> str:
    """The entries without a score in one line: the models that lack the same sets for the same reason together."""
    scored = {(record["set"], record["model"]) for record in records if "metrics" in record}
    reasons = {(record["set"], record["model"]): record["reason"] for record in records if "reason" in record}
    lacking: dict[tuple[str, str], list[str]] = {}  # model, reason -> sets
    for entry in task.entries:
        name = (entry.set, entry.model)
        if name not in scored:
            lacking.setdefault((entry.model, reasons.get(name, "")), []).append(task.sets[entry.set])
    together: dict[tuple[str, str], list[str]] = {}  # sets, reason -> models
    for (model, reason), sets in lacking.items():
        together.setdefault((listed(sets), reason), []).append(f"**{model}**")
    parts = (
        f"{listed(models)} on {sets}{f' ({reason})' if reason else ''}" for (sets, reason), models in together.items()
    )
    return f"Not run: {'; '.join(parts)}." if together else ""


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    """A table; the first `texts` columns stand at the left, the others at the right."""
    rule = [*("---" for _ in headers[:texts]), *("---:" for _ in headers[texts:])]
    return ["| " + " | ".join(cells) + " |" for cells in (headers, rule, *rows)]


def _metric(records: Sequence[Record], name: str) -> list[float]:
    """One number each: a list is no figure of a table."""
    found = [record["metrics"].get(name) for record in records]
    return [value for value in found if isinstance(value, int | float)]
