"""The runs of a task: every (set, model, seed), each with its folder and its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vssn.experiments.tasks.base import Entry, Task
from vssn.experiments.tasks.registry import TASKS
from vssn.training.config import Config, load_config

_SMALL = 8  # units of every part of a model, quick
_SIZES = {
    *("hidden_size", "latent_size", "noise_size", "mlp_size", "embed_size", "backward_size"),
    *("mixture_size", "nade_size"),
}


@dataclass(frozen=True)
class Settings:
    """Of one call."""

    output: Path
    budget: str = "full"
    seeds: int = 1
    data: str | None = None  # folder of the music sets and of the recordings; None: VSSN_DATA
    only: tuple[str, ...] = ()  # parts of the names of runs, at their hyphens: jsb, vssn_nade, jsb-srnn-0; none: all


class Job(NamedTuple):
    """One run."""

    task: Task
    entry: Entry
    seed: int
    folder: Path

    @property
    def identity(self) -> dict[str, Any]:
        """What a record says of it first."""
        return {"table": self.task.name, "set": self.entry.set, "model": self.entry.model, "seed": self.seed}

    def configure(self, settings: Settings) -> Config:
        """Its configuration, in the quick budget a tiny one. Raises ConfigError."""
        config = load_config(self.entry.config, self.entry.overrides).with_folder(settings.data)
        training: dict[str, Any] = {"output": str(self.folder), "seed": self.seed}
        update: dict[str, Any] = {}
        if settings.budget == "quick":
            sizes = config.model.model_dump(include=_SIZES)
            small = {name: min(size, _SMALL) for name, size in sizes.items() if size is not None}
            update["model"] = config.model.model_copy(update=small)
            update["data"] = config.data.model_copy(update=dict(self.task.quick_data))
            training |= {"max_epochs": 1, "max_minutes": 0.5}
        update["training"] = config.training.model_copy(update=training)
        return config.model_copy(update=update)


def jobs_of(table: str, settings: Settings) -> list[Job]:
    """In the order of running: the first seed of every entry, then the second one."""
    task, root = TASKS[table], settings.output / settings.budget / table
    jobs = []
    for seed in range(settings.seeds):
        for entry in task.entries:
            name = f"{entry.set}-{_plain(entry.model)}-{seed}"
            if not settings.only or any(f"-{part}-" in f"-{name}-" for part in settings.only):
                jobs.append(Job(task, entry, seed, root / name))
    return jobs


def _plain(text: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
