"""The folder of a run: what it may hold before, the files that every epoch writes, and what a failure leaves behind.

config.yaml  metrics.csv (a row per epoch)  best.ckpt  last.ckpt  tensorboard/
"""

from __future__ import annotations

import contextlib
import csv
import errno
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vssn.errors import ConfigError, TrainingError
from vssn.training.checkpoints import read_checkpoint
from vssn.training.config import Config
from vssn.training.heartbeat import Heartbeat
from vssn.utils.command import replacing
from vssn.utils.packages import needing

with needing("train"):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Checkpoint, TQDMProgressBar


SCORES = ("loss", "elbo_per_frame", "kl_z_per_frame", "kl_w_per_frame")  # logged as train/... and valid/...
MONITOR = "valid/elbo_per_frame"
_CANNOT_WRITE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENOTDIR)


def differences(
    config: Config, before: Mapping[str, Any], free: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, Any, Any]]:
    """(section.name, now, before) of every setting that differs, in the sections of `free` but for the names there.

    A setting that `before` does not have counts as its default: it came after the run, which was made without it.
    """
    settings = config.model_dump(mode="json")
    for section, names in free.items():
        fields = type(getattr(config, section)).model_fields
        defaults = {name: None if field.is_required() else field.default for name, field in fields.items()}
        now, then = settings[section], defaults | dict(before.get(section, {}))
        for name in (name for name in {**now, **then} if name not in names):
            if now.get(name) != then.get(name):
                yield f"{section}.{name}", now.get(name), then.get(name)


def check_folder(folder: Path, config: Config, resume: bool) -> int:
    """Epochs that are done, 0 for a new run."""
    name = "training.output"
    try:
        os.fspath(folder).encode()
        is_file = folder.exists() and not folder.is_dir()
    except UnicodeEncodeError:  # TensorBoard cannot write there
        raise ConfigError(f"{name}: expected a name in UTF-8, got {os.fspath(folder)!a}; name another folder") from None
    except OSError as error:
        raise _cannot_write(folder, error) from None
    if is_file:
        raise ConfigError(f"{name}: expected a folder, but {folder} is a file; name another folder")
    if not resume:
        if any((folder / kept).exists() for kept in ("best.ckpt", "last.ckpt")):
            raise ConfigError(f"{name}: {folder} holds a run already; continue it with --resume or name another folder")
        return 0
    if not (folder / "last.ckpt").is_file():
        raise ConfigError(
            f"{name}: {folder} holds no last.ckpt to resume; start without --resume or name another folder"
        )
    own = read_checkpoint(folder / "last.ckpt")["vssn"]
    for name_of, now, before in differences(config, own["config"], {"data": config.data.free, "model": set()}):
        raise ConfigError(
            f"{name_of}: {now!r}, but the run in {folder} has {before!r}; "
            "resume with the same data and model or name another folder"
        )
    if own["epoch"] >= config.training.max_epochs:
        raise ConfigError(
            f"training.max_epochs: the run in {folder} has done {own['epoch']} epochs of {config.training.max_epochs}; "
            "raise it to continue"
        )
    return int(own["epoch"])


@contextlib.contextmanager
def creating(folder: Path) -> Iterator[None]:
    """Makes the folder; where the block fails before a checkpoint is there, what it made is removed."""
    made: list[Path] = []
    before: set[Path] = set()
    making = True
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        before = set() if made else set(folder.iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        making = False
        yield
    except OSError as error:
        inside = error.filename is not None and os.path.abspath(error.filename).startswith(os.path.abspath(folder))
        if not making and not inside and error.errno not in _CANNOT_WRITE:
            raise
        raise _cannot_write(folder, error) from None
    finally:
        if not making and folder.is_dir() and not any((folder / kept).exists() for kept in ("best.ckpt", "last.ckpt")):
            for entry in set(folder.iterdir()) - before:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with contextlib.suppress(OSError):  # not empty, as it has a checkpoint, or never made
            for path in made:
                path.rmdir()


def _cannot_write(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"training.output: cannot write {error.filename or folder} ({error.strerror}); name another folder"
    )


class RunDirectory(Checkpoint):
    """Writes best.ckpt, last.ckpt and metrics.csv at the end of every epoch, each at once or not at all."""

    COLUMNS = (
        *("epoch", "updates", "seconds", "learning_rate", "kl_weight"),
        *(f"{split}/{name}" for split in ("train", "valid") for name in SCORES),
    )

    def __init__(
        self, folder: Path, resumed_epoch: int, report_every: int, pulse: Heartbeat, more: tuple[str, ...] = ()
    ) -> None:
        """Args: more: columns of metrics.csv beside those of every run."""
        self.folder, self.report_every, self.pulse = folder, report_every, pulse
        self.best = -math.inf
        self.rows: list[dict[str, Any]] = []
        if resumed_epoch:
            self.best = read_checkpoint(folder / "best.ckpt")["vssn"]["valid_elbo_per_frame"]
            with contextlib.suppress(FileNotFoundError), open(folder / "metrics.csv", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= resumed_epoch]
        names = (*self.COLUMNS, *more, *(self.rows[0] if self.rows else ()))
        self.columns = tuple(dict.fromkeys(names))  # a resumed run may have had others
        self.seconds_before = float(self.rows[-1]["seconds"]) if self.rows else 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pulse.started = time.monotonic() - self.seconds_before  # one clock for the lines of both

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values: dict[str, float] = pl_module.metrics  # type: ignore[assignment]  # vssn.training.module.TrainingModule's
        seconds = time.monotonic() - self.pulse.started
        if not math.isfinite(values[MONITOR]):
            raise TrainingError(
                f"training diverged in epoch {trainer.current_epoch + 1}: the validation ELBO is {values[MONITOR]}; "
                "lower training.learning_rate or training.gradient_clip_norm"
            )
        counts = {"epoch": trainer.current_epoch + 1, "updates": trainer.global_step, "seconds": round(seconds, 1)}
        self.rows.append({name: (counts | values)[name] for name in self.columns if name in counts | values})
        improved = values[MONITOR] > self.best
        if improved:
            self.best = values[MONITOR]
            self._save(trainer, "best.ckpt")
        if trainer.is_last_batch:  # an epoch that max_minutes cut short is done again when the run is resumed
            self._save(trainer, "last.ckpt")
        if not trainer.is_global_zero:
            return
        with replacing(self.folder / "metrics.csv") as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        line = (
            f"epoch {counts['epoch']:>3}  train {values['train/elbo_per_frame']:9.4f}  valid {values[MONITOR]:9.4f}  "
            f"kl_z {values['valid/kl_z_per_frame']:.3f}  kl_w {values['valid/kl_w_per_frame']:.3f}  {seconds:6.0f} s"
        )
        if counts["epoch"] % self.report_every == 0:
            bar = trainer.progress_bar_callback
            say = bar.print if isinstance(bar, TQDMProgressBar) else self.pulse.say
            say(line + ("  best" if improved else ""))

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        if not trainer.is_global_zero:  # the first process writes, all wait
            trainer.save_checkpoint(self.folder / name)
            return
        with replacing(self.folder / name) as part:
            trainer.save_checkpoint(part)
