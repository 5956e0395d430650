"""What the page says of a task in words: the {names} of its texts, filled in from the records; lists; links."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vssn.experiments.records import Record
from vssn.experiments.tasks.base import Column, Task

MISSING = "—"
_STATES = ("hidden_size", "latent_size")


def told(task: Task, done: Sequence[Record]) -> Task:
    """The task with what its records say in the place of every {name}."""
    facts = _facts(task, done)

    def columns(of: Sequence[Column]) -> tuple[Column, ...]:
        return tuple(column._replace(header=column.header.format_map(facts)) for column in of)

    def texts(of: Mapping[str, str]) -> dict[str, str]:
        return {name: text.format_map(facts) for name, text in of.items()}

    return task._replace(
        text=task.text.format_map(facts),
        unit=task.unit.format_map(facts),
        columns=columns(task.columns),
        compared=columns(task.compared or task.columns[:1]),
        tables=tuple(table._replace(columns=columns(table.columns)) for table in task.tables),
        details=tuple(detail._replace(header=detail.header.format_map(facts)) for detail in task.details),
        labels=texts(task.labels),
        protocol=texts(task.protocol),
    )


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
    tests = {
        name: each(count for record, count in zip(done, scored, strict=True) if record["set"] == name)
        for name in task.sets
    }
    return {
        **{f"test_{name}": count for name, count in tests.items()},
        **{name: each(of[name] for of in settings) for name in task.settings},
        "particles": each(record["metrics"].get("particles", MISSING) for record in done),
        "train": each(size("num_train", "num_train")),
        "test": each(scored),
        "frames": each(length),
        "ahead": each(
            count - of["seen"]
            for count, of in zip(length, settings, strict=True)
            if count and isinstance(of.get("seen"), int)
        ),
        "latents": listed(f"{count} for {model}" for model, count in latents.items()) or MISSING,
        "schedules": listed(
            f"{model} {_count(config['training']['max_epochs'], 'epoch')} in batches of {config['data']['batch_size']}"
            for model, config in configs.items()
            if "max_epochs" in config.get("training", {}) and "batch_size" in config["data"]  # else the default of then
        ),
    }


def notes_of(task: Task, done: Sequence[Record]) -> list[str]:
    """What records have to say of themselves."""
    notes: dict[tuple[str, str], list[str]] = {}
    for record in done:
        if "note" in record:
            notes.setdefault((record["model"], record["note"]), []).append(task.sets[record["set"]])
    return [f"{model}, on {listed(dict.fromkeys(sets))}: {note}." for (model, note), sets in notes.items()]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def listed(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items))


def link(title: str) -> str:
    """To the section of that title, as GitHub names its place on the page."""
    kept = "".join(character for character in title.lower() if character.isalnum() or character in " -_")
    return f"[{title}](#{kept.replace(' ', '-')})"
