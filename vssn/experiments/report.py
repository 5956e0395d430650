"""`vssn reproduce --report`: the markdown page of all results, from the score.json of the runs that are there.

    PAGE.md             the page
    PAGE-TABLE-*.png    its figures

A page whose records are to outlive their runs has a folder of its name in small letters with `runs` in it, which one
makes by hand; as this project's RESULTS.md has. Then, of the full budget:

    page/TABLE-*.png          the figures
    page/runs/TABLE/RUN.json  the records of all runs on the page
    page/runs/TABLE/RUN.csv   the curves of their training

No figure on the page is typed by hand: every number comes from a run's folder, from a record that an earlier page kept
(of a run made on another machine, or whose folder is gone) or from the published rows of a task; what is said of the
runs comes from their records too. The page opens with all domains in one table, then has a section for each: what is
measured, its table, what came out, a figure or two, and the rest folded away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vssn.experiments.jobs import Settings
from vssn.experiments.records import Record, keep_records, read_records
from vssn.experiments.report_figures import figures_of
from vssn.experiments.report_shifts import shifts
from vssn.experiments.report_standings import OVERVIEW, outcome, overview_rows
from vssn.experiments.report_tables import further_tables, how_made, main_table, markdown, not_run, runs_table
from vssn.experiments.report_words import MISSING, link, told
from vssn.experiments.tasks.base import Task
from vssn.experiments.tasks.registry import TASKS
from vssn.utils.command import replacing, writing

_OPENING = ("world_model", "pendulum-imagined-vssn")  # the figure below the overview

_HEAD = """# Results

What VSSN and its peers score on test data: music, speech, films, series. Every model of a bold row was trained and
scored here, by `vssn reproduce TABLE --budget {budget}`; each section ends with its command. Written by
`vssn reproduce --report` from the records of those runs; no figure is typed by hand. A section names the
rows, if any, of which the digits of an earlier page are all that was kept.
"""
_QUICK = "**Tiny models, one epoch, few particles and sequences: a check of the commands, no results.**\n"
_HOW_TO_READ = """### How to read it
The overview takes the best row of VSSN in each table, by the test figure itself, and sets it beside the best published
figure of the same data and kind or, where there is none, beside the best other model trained here. A small gap between
rows of one seed tells little. What a section says below its table is worked out from the records; more scores, the runs
one by one and more figures are folded away below that. Names of rows and columns: [Labels](#labels); why two figures
that look alike may not compare: [Protocol](#protocol).
"""
_LABELS = {
    "bold, italics": "a model trained and scored here; a published figure, with its source",
    "±": "a mean over seeds and their standard deviation (n - 1); of published figures, as printed there",
    "≥, ~": "of published figures: a bound of the likelihood; an estimate of it",
    MISSING: "not run, or not published",
    "best epochs": "the epoch of the best validation score, whose weights are scored, of those trained",
    "minutes": "by the clock, whatever else ran beside",
}
_PROTOCOL = {
    "Test figures seen before": "Settings are chosen by validation scores. But earlier versions of this project's page "
    "printed test figures of music and the pendulum before some of their settings were chosen (`git log -- "
    "RESULTS.md vssn/configs`), so those test sets are not fresh",
}


def write_report(path: Path, settings: Settings) -> list[str]:
    """The page at `path` and its figures, where the text above says; the tables of which nothing was found.

    Args:
        settings: `output` and `budget` say where the runs are.

    Raises:
        ConfigError: a record that cannot be read.
        TargetError: a place that cannot be written.
    """
    with writing("--report", path):
        return _write_report(path, settings)


def _write_report(path: Path, settings: Settings) -> list[str]:
    archive = path.parent / path.stem.lower()
    keeps = settings.budget == "full" and (archive / "runs").is_dir()
    kept = archive / "runs" if keeps else None
    overview, sections, opening, absent = [], [], "", []
    labels, protocol = dict(_LABELS), dict(_PROTOCOL)
    found = {name: read_records(name, settings, kept) for name in TASKS}
    for task in TASKS.values():
        named = found[task.name]
        if kept is not None:
            keep_records(task.name, named, kept)
        records = list(named.values())
        done = [record for record in records if "metrics" in record]
        figures = figures_of(task, named, settings, path, archive if keeps else None)
        if done:
            task = told(task, done)
            labels |= task.labels
            protocol |= task.protocol
        else:
            absent.append(task.name)
        if task.name == _OPENING[0] and _OPENING[1] in figures:
            opening = f"{figures.pop(_OPENING[1])}\nFrom {link(task.title)}.\n"
        overview += overview_rows(task, done)
        sections.append(_section(task, records, _beside(task, found), figures))
    parts = [_HEAD.format(budget=settings.budget)]
    if settings.budget == "quick":
        parts.append(_QUICK)
    parts += ["## Overview", "", *markdown(OVERVIEW, overview, texts=5), ""]
    parts += [*filter(None, (opening, _HOW_TO_READ)), *sections]
    parts += ["## Labels", *_entries(labels), "## Protocol", *_entries(protocol)]
    if keeps:
        parts.append("## Speed\n[benchmarks/README.md](benchmarks/README.md).\n")
    with replacing(path) as part:
        part.write_text("\n".join(parts), encoding="utf-8")
    return absent


def _section(task: Task, records: Sequence[Record], beside: Sequence[Record], figures: dict[str, str]) -> str:
    """Beside: records of other tasks that its table shows. Figures: what shows them, by their names."""
    done = [record for record in records if "metrics" in record]
    parts = [f"## {task.title}"]
    if done:
        shown = [name for name in task.shown if name in figures] or list(figures)[:1]
        folded = [line for name, line in figures.items() if name not in shown]
        parts += [task.text, "", *main_table(task, [*done, *beside]), "", *shifts(task, done), *outcome(task, done), ""]
        parts += [figures[name] for name in shown]
        parts += ["<details><summary>The runs, one by one; further tables and figures</summary>", ""]
        parts += [*runs_table(task, done), "", *further_tables(task, done), *folded, "</details>", ""]
        parts += [how_made(task, done), ""]
    missing = not_run(task, records)
    return "\n".join((*parts, missing, "") if missing else parts)


def _beside(task: Task, found: Mapping[str, Mapping[str, Record]]) -> list[Record]:
    """Of the models of a task, what the runs of other tasks score on the sets that it shows beside its own."""
    models = {entry.model for entry in task.entries}
    return [
        record
        for name, other in task.beside.items()
        for record in found[other].values()
        if record["set"] == name and record["model"] in models and "metrics" in record
    ]


def _entries(texts: dict[str, str]) -> list[str]:
    return [*(f"- **{name}**: {text}." for name, text in texts.items()), ""]
