"""`vssn reproduce TABLE`: trains and scores every (set, model, seed) of a table of the paper, each in its own folder.

    OUTPUT/BUDGET/TABLE/SET-MODEL-SEED/   a run's files, and score.json: what it scored, of what, how, in what time
    OUTPUT/BUDGET/TABLE/figures/

A run that has its score.json is skipped, one that was interrupted goes on from its last epoch; either only if it was
made with the settings of now. One that cannot be run (data that is absent, training that diverges) leaves failed.json
with the reason, and is tried again the next time. A run is locked while it is made, so several processes may share an
output. `vssn.experiments.report` makes the report of what is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import torch

from vssn.errors import CheckpointError, ConfigError, DataError, RunningError, TrainingError
from vssn.experiments.figures import read_metrics
from vssn.experiments.tasks import PROTOCOLS, Effort, Runs
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.config import Config, load_config
from vssn.training.fit import fit
from vssn.training.heartbeat import Heartbeat, print_line
from vssn.training.run_directory import FREE_DATA, differences, replacing
from vssn.utils.command import check_folder, writing
from vssn_kernels.version import __version__

BUDGETS = ("quick", "full")
SCORE, FAILED, TRAINED, LOCK = "score.json", "failed.json", "trained.json", "lock"
_QUICK = Effort(music_particles=3, speech_particles=2, sequences=4)
_SMALL = 8  # units of every part of a model, quick
_FREE = {"data": FREE_DATA, "model": set(), "training": {"output", "accelerator", "report_every"}}


class Entry(NamedTuple):
    """A row and column of a table: a model on a set."""

    set: str
    model: str  # as the report names it
    config: str  # a packaged one, or a path
    overrides: tuple[str, ...] = ()


class Job(NamedTuple):
    table: str
    entry: Entry
    seed: int
    folder: Path


@dataclass(frozen=True)
class Settings:
    """Of one call."""

    output: Path
    budget: str = "full"
    seeds: int = 1
    data: str | None = None  # folder of the music sets and of the recordings; None: VSSN_DATA
    only: tuple[str, ...] = ()  # parts of the names of runs, at their hyphens: jsb, vssn_nade, jsb-srnn-0; none: all


def _peers(kind: str, sets: Mapping[str, tuple[str, ...]], models: Mapping[str, str]) -> tuple[Entry, ...]:
    """Every model on every set, from one configuration for each model: music-vssn, music-srnn, ...; with each set the
    settings that all models share on it."""
    return tuple(
        Entry(name, label, f"{kind}-{suffix}", (f"data.set={name}", *shared))
        for name, shared in sets.items()
        for label, suffix in models.items()
    )


def _schedule(epochs: int, decay_after: int, decay: float) -> tuple[str, ...]:
    return (
        f"training.max_epochs={epochs}",
        f"training.lr_decay_after={decay_after}",
        f"training.lr_decay={decay}",
    )


# An epoch has 15 updates of JSB's chorales, 250 of MuseData: 4,000 to 7,000 updates in all. So small a set as JSB gets
# more weight decay than the others: with theirs the VSSN overfits from about its 60th epoch on.
_MUSIC_SETS = {
    "jsb": (*_schedule(160, 60, 0.97), "training.learning_rate=5.0e-3", "training.weight_decay=1.0"),
    "nottingham": _schedule(40, 20, 0.93),
    "piano_midi": _schedule(100, 40, 0.97),
    "musedata": _schedule(25, 12, 0.9),
}
# In place of the schedules for Bernoulli notes: an epoch with NADE is dearer, so there are fewer. On Nottingham and
# MuseData the validation score still rises at their end.
_NADE_SETS = {
    "jsb": _schedule(400, 150, 0.987),
    "nottingham": _schedule(20, 8, 0.82),
    "piano_midi": _schedule(80, 30, 0.94),
    "musedata": _schedule(14, 5, 0.75),
}
_MUSIC_MODELS = {
    "VSSN": "vssn",
    "VSSN-NADE": "vssn-nade",
    "SRNN": "srnn",
    "DKF": "dkf",
    "STORN-like": "storn",
    "RNN": "rnn",
    "RNN-NADE": "rnn-nade",
}
_SPEECH_MODELS = {"VSSN": "vssn", "SRNN": "srnn", "RNN": "rnn", "RNN-AR": "ar"}

TABLES: dict[str, tuple[Entry, ...]] = {
    "music": (
        *(Entry(name, "VSSN, sizes of its own", name) for name in _MUSIC_SETS),
        *(
            Entry(name, "VSSN-NADE, sizes of its own", name, ("model.likelihood=nade", *schedule))
            for name, schedule in _NADE_SETS.items()
        ),
        *_peers("music", _MUSIC_SETS, _MUSIC_MODELS),
    ),
    "objectives": tuple(
        Entry("jsb", f"VSSN, {objective}", "objectives", (f"model.objective={objective}",))
        for objective in ("elbo", "paper")
    ),
    "speech": _peers("speech", {"timit": (), "blizzard": ()}, _SPEECH_MODELS),
    "balls": (
        Entry("balls", "VSSN", "balls"),
        Entry("balls", "SRNN", "balls-srnn"),
        Entry("balls", "RNN", "balls-rnn"),
    ),
    "pendulum": (
        Entry("pendulum", "VSSN", "pendulum"),
        Entry("pendulum", "SRNN", "pendulum-srnn"),
        Entry("pendulum", "DKF", "pendulum-dkf"),
    ),
    "demo": (Entry("pendulum", "VSSN", "demo"),),
}


def jobs_of(table: str, settings: Settings) -> list[Job]:
    """In the order of running: the first seed of every entry, then the second one."""
    root = settings.output / settings.budget / table
    jobs = []
    for seed in range(settings.seeds):
        for entry in TABLES[table]:
            name = f"{entry.set}-{_plain(entry.model)}-{seed}"
            if not settings.only or any(f"-{part}-" in f"-{name}-" for part in settings.only):
                jobs.append(Job(table, entry, seed, root / name))
    return jobs


def reproduce(tables: Sequence[str], settings: Settings, say: Callable[[str], None] = print_line) -> int:
    """Runs what has not been run and draws the figures; the number of runs that failed.

    Args:
        tables: names from TABLES.
        say: takes the lines of progress.

    Raises:
        ConfigError: nothing goes by a name in `only`.
        TargetError: the output cannot be written.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    jobs = [job for table in tables for job in jobs_of(table, settings)]
    if not jobs:
        names = [job.folder.name for table in tables for job in jobs_of(table, Settings(settings.output))]
        raise ConfigError(f"--only: no run's name has {' or '.join(settings.only)} in it; runs: {', '.join(names)}")
    with writing("--output", settings.output):
        check_folder(settings.output / settings.budget)
    failed = 0
    for number, job in enumerate(jobs, 1):
        head = f"[{number}/{len(jobs)}] {job.table}: {job.entry.model} on {job.entry.set}, seed {job.seed}"
        try:
            config = _configure(job, settings)
            if (job.folder / SCORE).is_file():
                _require_same(job.folder, config, _read_record(job.folder / SCORE)["config"])
                say(f"{head}: done before")
                continue
            say(f"{head}: {job.folder}")
            with _alone(job.folder):
                record = _run(job, config, settings, say)
        except RunningError as error:
            failed += 1
            say(f"{head}: {error}")
            continue
        except (ConfigError, DataError, TrainingError, CheckpointError) as error:
            failed += 1
            say(f"{head}: failed: {error}")
            if not (job.folder / SCORE).is_file():
                _write(job.folder / FAILED, _identity(job) | {"reason": str(error)})
            continue
        minutes = (record["train_seconds"] + record["score_seconds"]) / 60
        numbers = (f"{name} {record['metrics'][name]:.4g}" for name in PROTOCOLS[job.table].headline)
        say(f"{head}: {', '.join(numbers)}  ({minutes:.1f} minutes)")
    for table in tables:
        try:
            for figure in draw(table, settings, say):
                say(f"figure: {figure}")
        except (ConfigError, DataError, CheckpointError) as error:
            failed += 1
            say(f"{table}: no figures: {error}")
    return failed


def draw(table: str, settings: Settings, say: Callable[[str], None] = print_line) -> list[Path]:
    """The figures of a table, of the first seed's runs that are done."""
    everything = Settings(settings.output, settings.budget, 1)
    runs: Runs = {
        (job.entry.set, job.entry.model): job.folder
        for job in jobs_of(table, everything)
        if (job.folder / SCORE).is_file()
    }
    if not runs:
        return []
    folder = settings.output / settings.budget / table / "figures"
    with writing("--output", folder), Heartbeat(f"{table}: drawing", say):
        folder.mkdir(exist_ok=True)
        return PROTOCOLS[table].draw(runs, folder, settings.data)


def read_records(table: str, settings: Settings, kept: Path | None = None) -> dict[str, dict[str, Any]]:
    """What score.json and failed.json of a table's runs hold, by the name of the run; of any number of seeds. A run
    that was made with other settings than those of now has a reason in the place of its metrics.

    Args:
        kept: a folder of records that `keep_records` wrote, of runs that may have been made on another machine; a run
            that is in the output is taken from there.

    Raises:
        ConfigError: a file that cannot be read.
    """
    entries = {(entry.set, entry.model): entry for entry in TABLES[table]}
    root = settings.output / settings.budget / table
    failed, scored = ({path.parent.name: path for path in root.glob(f"*/{name}")} for name in (FAILED, SCORE))
    earlier = {} if kept is None else {path.stem: path for path in (kept / table).glob("*.json")}
    records = {}
    for name, path in sorted((failed | earlier | scored).items()):
        record = _read_record(path)
        entry = entries.get((record["set"], record["model"]))
        if entry is None or record.get("budget", settings.budget) != settings.budget:  # of a table that was another
            continue
        if path.name != FAILED:
            job = Job(table, entry, record["seed"], path.parent)
            try:
                _require_same(name, _configure(job, settings), record["config"])
            except ConfigError as error:
                record = _identity(job) | {"reason": str(error)}
        records[name] = record
    return records


def keep_records(table: str, records: Mapping[str, dict[str, Any]], folder: Path) -> None:
    """Writes the records that have metrics to FOLDER/TABLE/RUN.json."""
    for name, record in records.items():
        if "metrics" in record:
            (folder / table).mkdir(parents=True, exist_ok=True)
            _write(folder / table / f"{name}.json", record)


def _configure(job: Job, settings: Settings) -> Config:
    config = load_config(job.entry.config, job.entry.overrides).with_folder(settings.data)
    training: dict[str, Any] = {"output": str(job.folder), "seed": job.seed}
    update: dict[str, Any] = {}
    if settings.budget == "quick":
        sizes = config.model.model_dump(include=_SIZES)
        small = {name: min(size, _SMALL) for name, size in sizes.items() if size is not None}
        update["model"] = config.model.model_copy(update=small)
        training |= {"max_epochs": 1, "max_minutes": 0.5}
        if "num_train" in type(config.data).model_fields:
            count = {"num_train": 40, "num_valid": 10, "num_test": 10}
            frames = {"num_frames": 40} if config.data.set == "balls" else {}
            update["data"] = config.data.model_copy(update=count | frames)
    update["training"] = config.training.model_copy(update=training)
    return config.model_copy(update=update)


_OF_A_SCORE = {
    *("table", "set", "model", "seed", "budget", "metrics", "config", "config_name", "parameters", "best_epoch"),
    *("epochs", "train_seconds", "score_seconds", "machine", "threads", "versions", "date"),
}
_SIZES = {
    *("hidden_size", "latent_size", "noise_size", "mlp_size", "embed_size", "backward_size"),
    *("mixture_size", "nade_size"),
}


def _run(job: Job, config: Config, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains, scores, and writes score.json."""
    _train(job, config)
    started = time.monotonic()
    best_epoch = read_checkpoint(job.folder / "best.ckpt")["vssn"]["epoch"]
    model, trained = load_model(job.folder / "best.ckpt")
    effort = _QUICK if settings.budget == "quick" else Effort()
    with Heartbeat("scoring the test set", say):
        metrics = PROTOCOLS[job.table].score(model, trained.with_folder(settings.data), effort)
    log = read_metrics(job.folder)
    record = _identity(job) | {
        "budget": settings.budget,
        "metrics": metrics,
        "config": _comparable(trained.model_dump(mode="json")),
        "config_name": job.entry.config,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "best_epoch": best_epoch,
        "epochs": int(log["epoch"][-1]),
        "train_seconds": float(log["seconds"][-1]),
        "score_seconds": time.monotonic() - started,
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
        "versions": f"vssn {__version__}, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    _write(job.folder / SCORE, record)
    (job.folder / FAILED).unlink(missing_ok=True)
    return record


def _train(job: Job, config: Config) -> None:
    """Trains, or goes on training, unless that is done; trained.json says so."""
    best, last = job.folder / "best.ckpt", job.folder / "last.ckpt"
    kept = {path: read_checkpoint(path)["vssn"] for path in (best, last) if path.is_file()}
    for own in kept.values():
        _require_same(job.folder, config, own["config"])
    if (job.folder / TRAINED).is_file():
        return
    if best in kept and last not in kept:  # it stopped within its first epoch: nothing to go on from
        best.unlink()
    epochs = kept[last]["epoch"] if last in kept else 0
    if epochs < config.training.max_epochs:
        fit(config, resume=epochs > 0)
    _write(job.folder / TRAINED, _identity(job))


def _identity(job: Job) -> dict[str, Any]:
    return {"table": job.table, "set": job.entry.set, "model": job.entry.model, "seed": job.seed}


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """The sections of a configuration without what may differ between two runs of the same experiment."""
    return {
        section: {name: value for name, value in values.items() if name not in _FREE[section]}
        for section, values in settings.items()
    }


def _require_same(folder: Path | str, config: Config, before: dict[str, Any]) -> None:
    """Raises ConfigError where what is in the folder was made with other settings than those of `config`."""
    for name, now, then in differences(config, before, _FREE):
        raise ConfigError(
            f"{name} is {now!r}, but {folder} was made with {then!r}; "
            "remove that folder to run it anew, or name another --output"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks the folder of a run. Raises RunningError where another process has it."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        with writing("--output", folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunningError(f"{folder}: another process is making this run; wait, or name another --output") from None
    try:
        yield
    finally:
        lock.release()


def describe_machine() -> str:
    """Processor and cores, and the CUDA device where there is one."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    device = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{device}"


def _read_record(path: Path) -> dict[str, Any]:
    """What failed.json, score.json or a kept copy of that holds. Raises ConfigError."""
    expected = {"table", "set", "model", "seed", "reason"} if path.name == FAILED else _OF_A_SCORE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = sorted(expected - record.keys())
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not the record of a run ({error}); remove that file to score it anew") from None
    if missing:
        raise ConfigError(f"{path}: without {', '.join(missing)}, which a record has; remove it to score the run anew")
    return dict(record)


def _write(path: Path, content: dict[str, Any]) -> None:
    with writing("--output", path), replacing(path) as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _plain(text: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
