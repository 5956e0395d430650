"""How the rows made here stand against the published ones and against each other, from the records: the lines of the
overview, and the sentences below a table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vssn.experiments.records import Record
from vssn.experiments.report_tables import as_printed, cell, values_beside, values_of
from vssn.experiments.report_words import MISSING, link, listed
from vssn.experiments.tasks.base import Column, Match, Published, Task

OVERVIEW = ["domain", "on", "VSSN, best row", "best comparable published, else best made here", "VSSN is", "seeds"]


class Row(NamedTuple):
    """A figure of a column."""

    name: str
    label: str  # as the tables print the name
    shown: str  # as the page prints it
    value: float
    seeds: int = 0


class Standing(NamedTuple):
    """A row of ours beside one that it is compared with."""

    column: Column
    ours: Row
    other: Row
    gap: float  # above 0 where ours is ahead, to the digits that are printed

    @property
    def verdict(self) -> str:
        return "ahead" if self.gap > 0 else "behind" if self.gap < 0 else "level"

    @property
    def by(self) -> str:
        return f"{abs(self.gap):.{self.column.digits}f}"


def overview_rows(task: Task, done: Sequence[Record]) -> list[list[str]]:
    """A row for each figure of a task: the first one names the domain and the unit."""
    rows = []
    for column in task.compared:
        ours = _best(task, _own(task, done, column))
        if ours is None:
            continue
        standing = _against_published(task, done, column) or _against_peers(task, done, column)
        if standing is None:
            rows.append([column.header, f"{ours.shown} {ours.label}", MISSING, MISSING, str(ours.seeds)])
            continue
        ours, other = standing.ours, standing.other
        verdict = "level" if standing.gap == 0 else f"{standing.verdict} by {standing.by}"
        made = "here" if other.seeds else "published"
        cells = [f"{ours.shown} {ours.label}", f"{other.shown} {other.label} ({made})", verdict, str(ours.seeds)]
        rows.append([column.header, *cells])
    if not rows:
        rows = [["not run" if not done else "no row of VSSN", *[MISSING] * 4]]
    domain = f"{link(task.title)}: {task.unit}" if done else link(task.title)
    return [[domain if index == 0 else "", *row] for index, row in enumerate(rows)]


def outcome(task: Task, done: Sequence[Record]) -> list[str]:
    """What came out, a sentence a line."""
    said = []
    if any(row.comparable for row in task.published):
        standings = [_against_published(task, done, column) for column in task.compared]
        said.append(_sentence("The best row of VSSN", "the best comparable published figure", standings))
        said.append(_elsewhere(task, done))
    elif task.published:
        said.append("No published figure is comparable.")
    for match in task.matches:
        standings = [_match(task, done, match, column) for column in task.compared]
        others = "" if len(match.peers) == 1 else "the best of its peers made here"
        said.append(_sentence("", others, standings, match.terms))
    said += [_unfinished(task, done), _seeds(done)]
    return [f"- {sentence}" for sentence in said if sentence]


def _sentence(ours: str, others: str, found: Iterable[Standing | None], terms: str = "") -> str:
    """Who is ahead on what. A row that is the same throughout is named once, in front."""
    standings = [standing for standing in found if standing is not None]
    if not standings:
        return ""
    one, other = ({getattr(standing, side).label for standing in standings} for side in ("ours", "other"))
    head = one.copy().pop() if len(one) == 1 else ours
    head += f" against {', '.join(filter(None, (others, *(other if len(other) == 1 else ()), terms)))}"
    groups: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
    for standing in standings:
        rows = (standing.ours.label if len(one) > 1 else "", standing.other.label if len(other) > 1 else "")
        named = " against ".join(filter(None, rows))
        name, _, rest = standing.column.header.partition(", ")
        header = f"{name} ({rest})" if rest else name
        by = f" by {standing.by}" if standing.gap else ""
        groups[standing.verdict].append(f"{header}{by}{f' ({named})' if named else ''}")
    said = (f"{verdict} on {listed(group)}" for verdict, group in groups.items() if group)
    return f"{head}: {'; '.join(said)}."


def _seeds(done: Sequence[Record]) -> str:
    counts = Counter((record["set"], record["model"]) for record in done).values()
    least, most = min(counts), max(counts)
    seeds = ("one seed" if least == 1 else f"{least} seeds") if least == most else f"{least} to {most} seeds"
    return f"Each figure is of {seeds}."


def _unfinished(task: Task, done: Sequence[Record]) -> str:
    """The rows whose last epoch was their best."""
    last = {(record["set"], record["model"]) for record in done if record["best_epoch"] == record["epochs"]}
    found: dict[str, list[str]] = {}
    for entry in task.entries:
        if (entry.set, entry.model) in last:
            found.setdefault(entry.model, []).append(task.sets[entry.set])
    models = (f"**{model}** on {listed(sets)}" for model, sets in found.items())
    return f"Best at their last epoch, so perhaps not done: {'; '.join(models)}." if found else ""


def _elsewhere(task: Task, done: Sequence[Record]) -> str:
    """Published figures that are better than ours but do not compare."""
    parts = []
    for column in task.compared:
        ours = _best(task, _own(task, done, column))
        rows = [row for row in _published(task, column, comparable=False) if ours]
        better = [row for row in rows if ours and task.better * (row.value - ours.value) > 0]
        if better:
            parts.append(f"{column.header} ({listed(f'{row.label} {row.shown}' for row in better)})")
    return f"Better figures are published on terms that do not compare: {listed(parts)}." if parts else ""


def _against_published(task: Task, done: Sequence[Record], column: Column) -> Standing | None:
    return _standing(task, column, _own(task, done, column), _published(task, column, comparable=True))


def _against_peers(task: Task, done: Sequence[Record], column: Column) -> Standing | None:
    """In the match whose row of ours is the best."""
    found = [standing for match in task.matches if (standing := _match(task, done, match, column))]
    return max(found, key=lambda standing: task.better * standing.ours.value, default=None)


def _match(task: Task, done: Sequence[Record], match: Match, column: Column) -> Standing | None:
    made = {row.name: row for row in _made(task, done, column)}
    made |= {row.label: row for row in _published(task, column, comparable=True)}
    ours, peers = ([made[name] for name in names if name in made] for names in ((match.ours,), match.peers))
    return _standing(task, column, ours, peers)


def _standing(task: Task, column: Column, ours: Sequence[Row], others: Sequence[Row]) -> Standing | None:
    best, other = _best(task, ours), _best(task, others)
    if best is None or other is None:
        return None
    return Standing(column, best, other, round(task.better * (best.value - other.value), column.digits))


def best_row(task: Task, done: Sequence[Record], column: Column) -> Row | None:
    """The best of the rows made here."""
    return _best(task, _made(task, done, column))


def rows_cited(task: Task, column: Column) -> list[Row]:
    """All published rows, whether they compare or not."""
    return [row for comparable in (True, False) for row in _published(task, column, comparable)]


def _best(task: Task, rows: Sequence[Row]) -> Row | None:
    return max(rows, key=lambda row: task.better * row.value, default=None)


def _made(task: Task, done: Sequence[Record], column: Column) -> list[Row]:
    """All rows that were made here."""
    models = dict.fromkeys(entry.model for entry in task.entries)
    found = {model: values for model in models if (values := values_of(done, model, column))}
    found |= values_beside(task, done, column)
    return [
        Row(
            name,
            f"**{name}**" if name in models else name,
            cell(values, column.digits),
            statistics.fmean(values),
            len(values),
        )
        for name, values in found.items()
    ]


def _own(task: Task, done: Sequence[Record], column: Column) -> list[Row]:
    return [row for row in _made(task, done, column) if row.name.startswith("VSSN")]


def _published(task: Task, column: Column, comparable: bool) -> list[Row]:
    rows = [row for row in task.published if row.comparable == comparable and row.values.get(column.published)]
    return [Row(row.model, f"*{row.model}*", as_printed(row, column), _number(row, column)) for row in rows]


def _number(published: Published, column: Column) -> float:
    return float(published.values[column.published].lstrip(">=~ ").split()[0])
