"""The folder of a run: what it may hold before, the files that every epoch writes, and what a failure leaves behind.
One process has it at a time.

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
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vssn.errors import CheckpointError, ConfigError, TrainingError, UserError
from vssn.nn.given import LOWER
from vssn.training.checkpoints import read_checkpoint
from vssn.training.config import Config
from vssn.training.heartbeat import Heartbeat
from vssn.utils.command import of_user, parts_of, replacing
from vssn.utils.locks import alone
from vssn.utils.packages import needing

with needing("train"):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Checkpoint, TQDMProgressBar


SCORES = ("loss", "elbo_per_frame", "kl_z_per_frame", "kl_w_per_frame")  # logged as train/... and valid/...
MONITOR = "valid/elbo_per_frame"
CHECKPOINTS = ("best.ckpt", "last.ckpt")
_LOCK = ".training"
_CANNOT_WRITE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR)


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


def folder_of(config: Config) -> Path:
    """That of the run; ~ is the user's own."""
    return of_user(config.training.output)


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
        if any((folder / kept).exists() for kept in CHECKPOINTS):
            raise ConfigError(f"{name}: {folder} holds a run already; continue it with --resume or name another folder")
        if not (folder / _LOCK).exists():  # a run is at work there, or was killed before its first checkpoint
            for written in ("config.yaml", "metrics.csv"):
                if os.path.lexists(folder / written):
                    raise ConfigError(
                        f"{name}: {folder} holds a {written} but no checkpoint, so no run's, and this run's would "
                        "replace it; name another folder, or move that file"
                    )
        return 0
    begun = _to_resume(folder)
    if begun is None:
        raise ConfigError(
            f"{name}: {folder} holds no last.ckpt to resume; start without --resume or name another folder"
        )
    own = read_checkpoint(begun)["vssn"]
    for name_of, now, before in differences(config, own["config"], {"data": config.data.free, "model": set()}):
        raise ConfigError(
            f"{name_of}: {now!r}, but the run in {folder} has {before!r}; "
            "resume with the same data and model or name another folder"
        )
    if begun.name == "best.ckpt":  # of a first epoch that max_minutes cut short: it is done again
        return 0
    if ended := why_ended(folder, own["epoch"], config):
        with contextlib.suppress(OSError), alone(folder / _LOCK, _running(folder)):
            make_good(folder)
        raise ConfigError(f"{ended}; raise it to continue")
    return int(own["epoch"])


def _to_resume(folder: Path) -> Path | None:
    """The checkpoint that --resume takes: last.ckpt; else best.ckpt, of a first epoch that was cut short."""
    return next((folder / kept for kept in reversed(CHECKPOINTS) if (folder / kept).is_file()), None)


def what_is_kept(config: Config) -> str:
    """Of a run that was ended, for the line that says so. A run that is trained, and was ended while it was scored, has
    nothing to resume."""
    folder = folder_of(config)
    kept = _to_resume(folder)
    if kept is None:
        return "nothing is kept"
    if kept.name == "best.ckpt":
        return f"{kept} is kept, of a first epoch that was cut short; --resume begins that anew"
    with contextlib.suppress(UserError):  # a file that cannot be read is for --resume to tell of
        if why_ended(folder, read_checkpoint(kept)["vssn"]["epoch"], config):
            return f"training is done, {folder / 'best.ckpt'} is kept: vssn evaluate scores it"
    return f"{kept} is kept, continue with --resume"


def why_ended(folder: Path, epochs: int, config: Config) -> str | None:
    """What ends the run in the folder, of which so many epochs are done; None: it can go on. Raises ConfigError."""
    most, patience = config.training.max_epochs, config.training.early_stopping_patience
    if epochs >= most:
        return f"training.max_epochs: the run in {folder} has done {epochs} epochs of {most}"
    scores = [float(row[MONITOR]) for row in read_rows(folder, epochs)]
    without = len(scores) - 1 - scores.index(max(scores)) if scores else 0
    if patience is not None and without >= patience:
        length = f"{without} epoch{'s' if without > 1 else ''}"
        return f"training.early_stopping_patience: the run in {folder} has stopped after {length} without a better one"
    return None


@contextlib.contextmanager
def creating(folder: Path) -> Iterator[None]:
    """Makes the folder, for this process alone; where the block fails before a checkpoint is there, what it made is
    removed. Raises RunningError where another process trains there."""
    making = True
    try:
        with contextlib.ExitStack() as undo:
            undo.callback(_remove_empty, [path for path in (folder, *folder.parents) if not path.exists()])
            folder.mkdir(parents=True, exist_ok=True)
            undo.enter_context(alone(folder / _LOCK, _running(folder)))
            undo.callback(_clear, folder, set(folder.iterdir()))
            make_good(folder)
            undo.callback(_make_good_again, folder)
            making = False
            yield
    except OSError as error:
        name = os.path.abspath(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else ""
        if not making and not name.startswith(os.path.abspath(folder)) and error.errno not in _CANNOT_WRITE:
            raise
        raise _cannot_write(folder, error) from None


def _make_good_again(folder: Path) -> None:
    """Of a process that was interrupted while it wrote."""
    with contextlib.suppress(OSError, UserError):  # a full disk, say: the next one will
        make_good(folder)


def _clear(folder: Path, before: Collection[Path]) -> None:
    """Removes what was not there before, unless a checkpoint is there."""
    if folder.is_dir() and not any((folder / kept).exists() for kept in CHECKPOINTS):
        for entry in set(folder.iterdir()).difference(before):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _remove_empty(made: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty, as it has a checkpoint, or never made
        for path in made:
            path.rmdir()


def _cannot_write(folder: Path, error: OSError) -> ConfigError:
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else folder
    advice = "name another folder"
    with contextlib.suppress(OSError):
        if (kept := _to_resume(folder)) is not None:
            advice = f"mend that, {kept} is kept; continue with --resume"
    return ConfigError(f"training.output: cannot write {place} ({error.strerror}); {advice}")


def _running(folder: Path) -> str:
    return f"training.output: another process trains in {folder}; wait for it, or name another folder"


def make_good(folder: Path) -> None:
    """What a process left that was killed while it wrote: parts of files, a best.ckpt that is behind last.ckpt. Raises
    CheckpointError, ConfigError."""
    for name in (*CHECKPOINTS, "metrics.csv", "config.yaml"):
        for part in parts_of(folder / name):
            part.unlink(missing_ok=True)
    if (folder / "last.ckpt").is_file():
        best, _ = best_so_far(folder, read_rows(folder, read_checkpoint(folder / "last.ckpt")["vssn"]["epoch"]))
        if best.name != "best.ckpt":
            with replacing(folder / "best.ckpt") as part:
                shutil.copyfile(best, part)


def best_so_far(folder: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[Path, float]:
    """The checkpoint of the best epoch and its validation ELBO: last.ckpt where a process was killed before it had
    written best.ckpt. Raises CheckpointError.

    Args:
        rows: of metrics.csv, up to the epoch of last.ckpt.
    """
    best, last = (folder / kept for kept in CHECKPOINTS)
    epoch, reached = read_checkpoint(last)["vssn"]["epoch"], _reached(last)
    if not best.exists() and len(rows) == epoch and all(float(row[MONITOR]) < reached for row in rows[:-1]):
        return last, reached
    before = _reached(best)
    return (last, reached) if reached > before else (best, before)


def _reached(checkpoint: Path) -> float:
    """Its validation ELBO. Raises CheckpointError."""
    reached: float | None = read_checkpoint(checkpoint)["vssn"].get("valid_elbo_per_frame")
    if reached is None:
        raise CheckpointError(f"{checkpoint}: expected its validation ELBO, got none; use an intact checkpoint")
    return reached


def read_rows(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Those of metrics.csv, up to so many epochs. Raises ConfigError."""
    file = folder / "metrics.csv"
    try:
        with open(file, newline="", encoding="utf-8") as text:
            rows = [row for row in csv.DictReader(text) if int(row["epoch"]) <= epochs]
        for row in rows:
            float(row["seconds"]), float(row[MONITOR])
        return rows
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ConfigError(f"{file}: expected the epochs of a run, got another text; mend it, or remove it") from None


def identity(folder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        found = folder.stat()
        return found.st_dev, found.st_ino
    return None


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
        self.place: tuple[int, int] | None = None  # of the first process
        self.begun = False  # of this process: what a checkpoint holds has been taken
        self.rows = read_rows(folder, resumed_epoch) if resumed_epoch else []
        self.best = best_so_far(folder, self.rows)[1] if resumed_epoch else -math.inf
        names = (*self.COLUMNS, *more, *(self.rows[0] if self.rows else ()))
        self.columns = tuple(dict.fromkeys(names))  # a resumed run may have had others
        self.seconds_before = float(self.rows[-1]["seconds"]) if self.rows else 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begun = True
        self.pulse.started = time.monotonic() - self.seconds_before  # one clock for the lines of both

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values: dict[str, float] = pl_module.metrics  # type: ignore[assignment]  # vssn.training.module.TrainingModule's
        seconds = time.monotonic() - self.pulse.started
        if not math.isfinite(values[MONITOR]):
            raise TrainingError(
                f"training diverged in epoch {trainer.current_epoch + 1}: the validation ELBO is {values[MONITOR]}; "
                f"{LOWER}"
            )
        counts = {"epoch": trainer.current_epoch + 1, "updates": trainer.global_step, "seconds": round(seconds, 1)}
        self.rows.append({name: (counts | values)[name] for name in self.columns if name in counts | values})
        improved = values[MONITOR] > self.best
        self.best = max(self.best, values[MONITOR])
        # Wherever a process is killed, the run goes on: a row of an epoch that last.ckpt does not have is left out, and
        # a best.ckpt that is behind last.ckpt is made good.
        if trainer.is_global_zero:
            self._write_rows(trainer)
        if trainer.is_last_batch:  # an epoch that max_minutes cut short is done again when the run is resumed
            if trainer.is_global_zero and trainer.current_epoch == 0:  # such a first one has left its best.ckpt
                (self.folder / "best.ckpt").unlink(missing_ok=True)
            self._save(trainer, "last.ckpt")
        if improved:
            self._save(trainer, "best.ckpt")
        if not trainer.is_global_zero:
            return
        line = (
            f"epoch {counts['epoch']:>3}  train {values['train/elbo_per_frame']:9.4f}  valid {values[MONITOR]:9.4f}  "
            f"kl_z {values['valid/kl_z_per_frame']:.3f}  kl_w {values['valid/kl_w_per_frame']:.3f}  {seconds:6.0f} s"
        )
        if counts["epoch"] % self.report_every == 0:
            bar = trainer.progress_bar_callback
            say = bar.print if isinstance(bar, TQDMProgressBar) else self.pulse.say
            skipped = getattr(pl_module, "skipped", 0)
            say(line + ("  best" if improved else "") + (f"  {skipped} updates skipped" if skipped else ""))

    def _require_place(self, trainer: pl.Trainer) -> None:
        """Raises TrainingError where the folder is no longer the one that the run began in."""
        if identity(self.folder) != self.place:
            raise TrainingError(
                f"training.output: {self.folder} was removed or moved in epoch {trainer.current_epoch + 1}; "
                "start again, or put it back and continue with --resume"
            )

    def _write_rows(self, trainer: pl.Trainer) -> None:
        self._require_place(trainer)
        with replacing(self.folder / "metrics.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        if not trainer.is_global_zero:  # the first process writes, all wait
            trainer.save_checkpoint(self.folder / name)
            return
        self._require_place(trainer)
        with replacing(self.folder / name) as part:
            trainer.save_checkpoint(part)
