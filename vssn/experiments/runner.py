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
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vssn.errors import CheckpointError, ConfigError, DataError, RunningError, TrainingError
from vssn.experiments.figures import read_metrics
from vssn.experiments.jobs import Job, Settings, jobs_of
from vssn.experiments.records import FAILED, SCORE, comparable, read_record, require_same, write_record
from vssn.experiments.tasks.base import Runs
from vssn.experiments.tasks.registry import TASKS
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.config import Config
from vssn.training.fit import fit
from vssn.training.heartbeat import Heartbeat, print_line
from vssn.training.run_directory import CHECKPOINTS, why_ended
from vssn.utils.command import check_folder, writing
from vssn.utils.locks import alone
from vssn.utils.machine import processor_name
from vssn_kernels.version import __version__

TRAINED, LOCK = "trained.json", "lock"


def reproduce(tables: Sequence[str], settings: Settings, say: Callable[[str], None] = print_line) -> int:
    """Runs what has not been run and draws the figures; the number of runs that failed.

    Args:
        tables: names of tasks.
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
        head = f"[{number}/{len(jobs)}] {job.task.name}: {job.entry.model} on {job.entry.set}, seed {job.seed}"
        try:
            config = job.configure(settings)
            if (job.folder / SCORE).is_file():
                require_same(job.folder, config, read_record(job.folder / SCORE)["config"])
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
                write_record(job.folder / FAILED, job.identity | {"reason": str(error)})
            continue
        minutes = (record["train_seconds"] + record["score_seconds"]) / 60
        numbers = (f"{name} {record['metrics'][name]:.4g}" for name in job.task.headline)
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
        figures = TASKS[table].draw(runs, folder, settings.data)
        if (draw_scores := TASKS[table].draw_scores) is not None:
            figures += draw_scores({key: read_record(path / SCORE)["metrics"] for key, path in runs.items()}, folder)
        return figures


def _run(job: Job, config: Config, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains, scores, and writes score.json."""
    _train(job, config)
    started = time.monotonic()
    best_epoch = read_checkpoint(job.folder / "best.ckpt")["vssn"]["epoch"]
    model, trained = load_model(job.folder / "best.ckpt")
    effort = job.task.quick_effort if settings.budget == "quick" else job.task.effort
    with Heartbeat("scoring the test set", say):
        metrics = job.task.score(model, trained.with_folder(settings.data), effort)
    log = read_metrics(job.folder, ("seconds",))
    record = job.identity | {
        "budget": settings.budget,
        "metrics": metrics,
        "settings": dict(job.task.settings),
        "config": comparable(trained),
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
    write_record(job.folder / SCORE, record)
    (job.folder / FAILED).unlink(missing_ok=True)
    return record


def _train(job: Job, config: Config) -> None:
    """Trains, or goes on training, unless that is done; trained.json says so."""
    paths = [job.folder / name for name in CHECKPOINTS]
    kept = {path: read_checkpoint(path)["vssn"] for path in paths if path.is_file()}
    for own in kept.values():
        require_same(job.folder, config, own["config"])
    if (job.folder / TRAINED).is_file():
        return
    last = kept.get(job.folder / "last.ckpt")
    if last is None or not why_ended(job.folder, last["epoch"], config):
        fit(config, resume=bool(kept))
    write_record(job.folder / TRAINED, job.identity)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks the folder of a run. Raises RunningError where another process has it."""
    message = f"{folder}: another process is making this run; wait, or name another --output"
    with contextlib.ExitStack() as locked:
        with writing("--output", folder):
            folder.mkdir(parents=True, exist_ok=True)
            locked.enter_context(alone(folder / LOCK, message))
        yield


def describe_machine() -> str:
    """Processor and cores, and the CUDA device where there is one."""
    device = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{processor_name()}, {os.cpu_count()} cores{device}"
