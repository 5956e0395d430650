"""`vssn reproduce --report`: the markdown page of all results, from the score.json of the runs that are there.

    PAGE.md             the page
    PAGE-TABLE-*.png    its figures

A page whose records are to outlive their runs has a folder of its name in small letters with `runs` in it, which one
makes by hand; as this project's RESULTS.md has. Then, of the full budget:

    page/TABLE-*.png          the figures
    page/runs/TABLE/RUN.json  the records of all runs on the page

Nothing on the page is typed by hand: every number comes from a run's folder, from a record that an earlier page kept
(of a run made on another machine, or whose folder is gone) or from the published rows of a task; what is said of the
runs comes from their records too.
"""

from __future__ import annotations

import inspect
import shutil
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vssn.experiments.jobs import Settings
from vssn.experiments.records import Record, keep_records, read_records
from vssn.experiments.tasks.base import Column, Target, Task
from vssn.experiments.tasks.registry import TASKS
from vssn.utils.command import replacing, writing

MISSING = "—"
_STATES = ("hidden_size", "latent_size")


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
    parts, absent = [_HEAD.format(budget=settings.budget)], []
    if settings.budget == "quick":
        parts.append("**Tiny models, one epoch, few particles and sequences: a check of the commands, no results.**\n")
    for task in TASKS.values():
        named = read_records(task.name, settings, kept)
        if kept is not None:
            keep_records(task.name, named, kept)
        records = list(named.values())
        if not any("metrics" in record for record in records):
            absent.append(task.name)
        parts.append(_section(task, records))
        prefix = archive / task.name if keeps else path.parent / f"{path.stem}-{task.name}"
        figures = _copy_figures(task.name, settings, prefix)
        if keeps:  # those of runs that are known by their records alone
            figures |= set(archive.glob(f"{task.name}-*.png"))
        for figure in sorted(figures):
            shown = figure.stem.removeprefix(f"{prefix.name}-").replace("-", ", ")
            address = quote(figure.relative_to(path.parent).as_posix())
            parts.append(f"![{task.title}: {shown}]({address})\n")
    if keeps:
        parts.append("## Speed\n[benchmarks/README.md](benchmarks/README.md).\n")
    with replacing(path) as part:
        part.write_text("\n".join(parts), encoding="utf-8")
    return absent


def _copy_figures(table: str, settings: Settings, prefix: Path) -> set[Path]:
    """Copies what the runs of a table drew to PREFIX-NAME.png: those."""
    copies = set()
    for figure in (settings.output / settings.budget / table / "figures").glob("*.png"):
        name = figure.name.removeprefix(f"{table}-")
        copies.add(copy := prefix.with_name(f"{prefix.name}-{name}"))
        shutil.copyfile(figure, copy)
    return copies


_HEAD = """# Results

Written by `vssn reproduce --report` from the runs of `vssn reproduce TABLE --budget {budget}`; nothing here is typed by
hand. A figure with ± is a mean over seeds and their standard deviation (n - 1). Published figures stand below ours, in
italics, with their sources; ≥ marks a bound, ~ an estimate. Minutes are by the clock, whatever else ran beside.
"""


def _section(task: Task, records: Sequence[Record]) -> str:
    done = [record for record in records if "metrics" in record]
    lines = [f"## {task.title}"]
    if done:
        facts = _facts(task, done)
        said = task._replace(
            text=_with_notes(task, task.text.format_map(facts), done),
            columns=tuple(column._replace(header=column.header.format_map(facts)) for column in task.columns),
            details=tuple(detail._replace(header=detail.header.format_map(facts)) for detail in task.details),
        )
        lines += [said.text, "", *_table(said, done), ""]
        for table in said.tables:
            lines += [f"{table.title}:", "", *_table(said._replace(columns=table.columns), done), ""]
        lines += _runs(said, done)
    missing = _not_run(task, records)
    if missing:
        lines += ["", "Not run:", *(f"- {line}" for line in missing)]
    return "\n".join((*lines, ""))


def _facts(task: Task, done: Sequence[Record]) -> dict[str, str]:
    """What the records of a task say of its runs; several values where the runs differ."""
    published = {} if task.simulator is None else inspect.signature(task.simulator).parameters
    frames = "num_frames" if "num_frames" in published else "num_steps"
    settings = [{**task.settings, **record.get("settings", {})} for record in done]

    def each(values: Iterable[Any]) -> str:
        return " or ".join(dict.fromkeys(str(value) for value in values if value is not None)) or MISSING

    def size(name: str, key: str) -> list[int | None]:
        """Of a set: as configured, else as its simulator has it."""
        default = published[key].default if key in published else None
        given = (record["config"]["data"].get(name) for record in done)
        return [default if value is None else value for value in given]

    models = {record["model"]: record for record in done}
    known = [entry.model for entry in task.entries if entry.model in models]
    configs = {model: models[model]["config"] for model in dict.fromkeys((*known, *models))}
    sizes = {model: [config["model"].get(name) for name in _STATES] for model, config in configs.items()}
    latents = {model: sum(found) for model, found in sizes.items() if None not in found}  # a model may have other names
    test = size("num_test", "num_test")
    scored = [record["metrics"].get("sequences") or count for record, count in zip(done, test, strict=True)]
    length = size("num_frames", frames)
    return {
        **{name: each(of[name] for of in settings) for name in task.settings},
        "particles": each(record["metrics"].get("particles", MISSING) for record in done),
        "train": each(size("num_train", "num_train")),
        "test": each(scored),
        "frames": each(length),
        "ahead": each(count - of["seen"] for count, of in zip(length, settings, strict=True) if count and "seen" in of),
        "latents": ", ".join(f"{count} for {model}" for model, count in latents.items()) or MISSING,
        "schedules": ", ".join(
            f"{model} {_count(config['training']['max_epochs'], 'epoch')} in batches of {config['data']['batch_size']}"
            for model, config in configs.items()
        ),
    }


def _with_notes(task: Task, text: str, done: Sequence[Record]) -> str:
    """The text, and what records have to say of themselves."""
    notes: dict[tuple[str, str], list[str]] = {}
    for record in done:
        if "note" in record:
            notes.setdefault((record["model"], record["note"]), []).append(task.sets[record["set"]])
    said = (f"{model}, on {_list(dict.fromkeys(sets))}: {note}." for (model, note), sets in notes.items())
    return " ".join((text, *said))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _table(task: Task, done: list[Record]) -> list[str]:
    headers = ["model", *(column.header for column in task.columns)]
    rows: list[list[str]] = []
    models = [
        model
        for model in dict.fromkeys(entry.model for entry in task.entries)
        if any(record["model"] == model for record in done)
    ]
    for model in models:
        rows.append([f"**{model}**", *(_cell(_values(done, model, column), column.digits) for column in task.columns)])
    for baseline in task.baselines:
        columns = [column._replace(metric=f"{baseline.prefix}_{column.metric}") for column in task.columns]
        cells = [_cell(_values(done, None, column), column.digits) for column in columns]
        if any(cell != MISSING for cell in cells):
            rows.append([baseline.model, *cells])
    for target in task.targets:
        if target.model in models:
            row = [_less(done, task, target, column) for column in task.columns]
            rows.append([f"{target.model} against {target.published} as published", *row])
    for published in task.published:
        values = (
            published.values.get(column.published, MISSING).replace(">=", "≥ ").replace("~", "~ ")
            for column in task.columns
        )
        source = published.source + (f"; {published.note}" if published.note else "")
        rows.append([f"*{published.model}* ({source})", *values])
    return _markdown(headers, rows)


def _less(done: list[Record], task: Task, target: Target, column: Column) -> str:
    values = _values(done, target.model, column)
    published = next(row for row in task.published if row.model == target.published).values.get(column.published)
    if not values or published is None:
        return MISSING
    gap = statistics.fmean(values) - float(published.lstrip(">=~ ").split()[0])
    return f"{gap:+.{column.digits}f} ({'better' if gap * target.better > 0 else 'worse'})"


def _values(done: list[Record], model: str | None, column: Column) -> list[float]:
    """Of a model, None: of all."""
    own = [record for record in done if model in (None, record["model"]) and record["set"] == column.set]
    return _metric(own, column.metric)


def _metric(records: Sequence[Record], name: str) -> list[float]:
    return [record["metrics"][name] for record in records if name in record["metrics"]]


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return MISSING
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _runs(task: Task, done: list[Record]) -> list[str]:
    """What each figure was made of, and the command that makes it again."""
    details = [detail for detail in task.details if any(detail[1] in record["metrics"] for record in done)]
    headers = ["set, model", *(header for header, *_ in details)]
    headers += ["seeds", "parameters", "best epochs", "training, minutes", "scoring, minutes"]
    rows = []
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(done, key=lambda record: record["seed"]):
        groups.setdefault((record["set"], record["model"]), []).append(record)
    order = [(entry.set, entry.model) for entry in task.entries]
    for name, group in sorted(
        groups.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    ):
        rows.append(
            [
                f"{name[0]}, {name[1]}",
                *(_cell(_metric(group, key), digits) for _, key, digits in details),
                _list(record["seed"] for record in group),
                f"{group[0]['parameters']:,}",
                _list(f"{record['best_epoch']}/{record['epochs']}" for record in group),
                _list(f"{record['train_seconds'] / 60:.1f}" for record in group),
                _list(f"{record['score_seconds'] / 60:.1f}" for record in group),
            ]
        )
    seeds, threads = 1 + max(record["seed"] for record in done), max(record["threads"] for record in done)
    command = f"vssn reproduce {task.name} --budget {done[0]['budget']} --seeds {seeds} --threads {threads}"
    if task.reads_data:
        command += " --data FOLDER"
    made = dict.fromkeys(
        f"{record['machine']}, {record['threads']} threads; {record['versions']}; {record['date']}" for record in done
    )
    return [
        *("<details><summary>The runs, one by one</summary>", "", *_markdown(headers, rows), "", "</details>", ""),
        f"`{command}` makes all of it, `--only SET-MODEL` a part. Made on: {'. '.join(made)}.",
    ]


def _not_run(task: Task, records: Sequence[Record]) -> list[str]:
    """Entries without a score, a line for each model and reason (where there is one)."""
    scored = {(record["set"], record["model"]) for record in records if "metrics" in record}
    reasons = {(record["set"], record["model"]): f": {record['reason']}" for record in records if "reason" in record}
    sets: dict[tuple[str, str], list[str]] = {}
    for entry in task.entries:
        name = (entry.set, entry.model)
        if name not in scored:
            sets.setdefault((entry.model, reasons.get(name, "")), []).append(task.sets[entry.set])
    return [f"{model} on {_list(names)}{reason}" for (model, reason), names in sets.items()]


def _list(items: Any) -> str:
    return ", ".join(map(str, items))


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in headers[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (headers, rule, *rows)]
