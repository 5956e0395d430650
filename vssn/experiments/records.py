"""The records of runs: score.json, or failed.json with the reason; written, read, kept and compared.

A record counts only where its run was made with the settings of now, but for those that change no number: where the
data is, where the run stands, on what it ran.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vssn.errors import ConfigError
from vssn.experiments.jobs import Job, Settings
from vssn.experiments.tasks.registry import TASKS
from vssn.training.config import Config
from vssn.training.run_directory import differences
from vssn.utils.command import replacing, writing

SCORE, FAILED = "score.json", "failed.json"

Record = Mapping[str, Any]

_IDENTITY: dict[str, Any] = {"table": str, "set": str, "model": str, "seed": int}
_OF_A_FAILURE = _IDENTITY | {"reason": str}
_OF_A_SCORE = _IDENTITY | {
    **dict.fromkeys(("budget", "config_name", "machine", "versions", "date"), str),
    **dict.fromkeys(("parameters", "best_epoch", "epochs", "threads"), int),
    **dict.fromkeys(("train_seconds", "score_seconds"), int | float),
    **dict.fromkeys(("metrics", "config"), dict),
}


def read_records(table: str, settings: Settings, kept: Path | None = None) -> dict[str, dict[str, Any]]:
    """What score.json and failed.json of a table's runs hold, by the name of the run; of any number of seeds. A run
    that was made with other settings than those of now has a reason in the place of its metrics.

    Args:
        kept: a folder of records that `keep_records` wrote, of runs that may have been made on another machine; a run
            that is in the output is taken from there.

    Raises:
        ConfigError: a file that cannot be read.
    """
    entries = {(entry.set, entry.model): entry for entry in TASKS[table].entries}
    root = settings.output / settings.budget / table
    failed, scored = ({path.parent.name: path for path in root.glob(f"*/{name}")} for name in (FAILED, SCORE))
    earlier = {} if kept is None else {path.stem: path for path in (kept / table).glob("*.json")}
    records = {}
    for name, path in sorted((failed | earlier | scored).items()):
        record = read_record(path)
        entry = entries.get((record["set"], record["model"]))
        if entry is None or record.get("budget", settings.budget) != settings.budget:  # of a table that was another
            continue
        if path.name != FAILED:
            job = Job(TASKS[table], entry, record["seed"], path.parent)
            try:
                require_same(name, job.configure(settings), record["config"])
            except ConfigError as error:
                record = job.identity | {"reason": str(error)}
        records[name] = record
    return records


def keep_records(table: str, records: Mapping[str, dict[str, Any]], folder: Path) -> None:
    """Writes the records that have metrics to FOLDER/TABLE/RUN.json."""
    for name, record in records.items():
        if "metrics" in record:
            (folder / table).mkdir(parents=True, exist_ok=True)
            write_record(folder / table / f"{name}.json", record)


def read_record(path: Path) -> dict[str, Any]:
    """What failed.json, score.json or a kept copy of that holds. Raises ConfigError."""
    expected = _OF_A_FAILURE if path.name == FAILED else _OF_A_SCORE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = sorted(expected.keys() - record.keys())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: not the record of a run ({error}); remove that file to score it anew") from None
    if missing:
        raise ConfigError(f"{path}: without {', '.join(missing)}, which a record has; remove it to score the run anew")
    if wrong := _wrong(record, expected):
        raise ConfigError(
            f"{path}: expected the record of a run, but {wrong} is of another kind; remove that file to score it anew"
        )
    return {name: record[name] for name in expected} if path.name == FAILED else dict(record)


def _wrong(record: Record, expected: Mapping[str, Any]) -> str | None:
    """The first entry that is none of its type, which the page could not print."""
    inside = {name: record[name] for name in ("metrics", "config") if isinstance(record.get(name), dict)}
    metrics = {f"metrics.{name}": value for name, value in inside.get("metrics", {}).items()}
    sections = {f"config.{name}": value for name, value in inside.get("config", {}).items()}
    kinds = {
        **expected,
        **{name: kind for name, kind in (("note", str), ("settings", dict)) if name in record},
        **dict.fromkeys(metrics, int | float | list),
        **dict.fromkeys(sections, dict),
    }
    for name, value in {**record, **metrics, **sections}.items():
        large = isinstance(value, int) and abs(value) >= 2**63
        if large or not isinstance(value, kinds.get(name, object)):
            return name
    return None


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Writes it whole or not at all. Raises TargetError."""
    with writing("--output", path), replacing(path) as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def comparable(config: Config) -> dict[str, Any]:
    """The sections of a configuration without what may differ between two runs of the same experiment."""
    free = _free(config)
    return {
        section: {name: value for name, value in values.items() if name not in free[section]}
        for section, values in config.model_dump(mode="json").items()
    }


def require_same(folder: Path | str, config: Config, before: dict[str, Any]) -> None:
    """Raises ConfigError where what is in the folder was made with other settings than those of `config`."""
    for name, now, then in differences(config, before, _free(config)):
        raise ConfigError(
            f"{name} is {now!r}, but {folder} was made with {then!r}; "
            "remove that folder to run it anew, or name another --output"
        )


def _free(config: Config) -> dict[str, Collection[str]]:
    return {"data": config.data.free, "model": (), "training": ("output", "accelerator", "report_every")}
