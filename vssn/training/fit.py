"""Training on Lightning: `fit(config)` fills a folder with a run.

    config.yaml  metrics.csv (a row per epoch)  best.ckpt  last.ckpt  tensorboard/

A run continues from last.ckpt exactly as if it had not stopped: the order and the learning rate of an epoch
follow from its number and the seeds, the noise and the KL weight of an update likewise.
"""

from __future__ import annotations

import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.loggers import TensorBoardLogger

from vssn.data.splits import Splits
from vssn.errors import ConfigError
from vssn.inference.scoring import Scores, evaluate
from vssn.nn.interface import SequenceModel
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.config import Config
from vssn.training.heartbeat import Heartbeat
from vssn.training.module import SequenceData, TrainingModule
from vssn.training.run_directory import MONITOR, RunDirectory, check_folder, creating, replacing
from vssn.training.sections import TrainingSection
from vssn.training.trainer import OneProcess, ProgressBar, first_rank, quiet
from vssn_kernels import keep_memory


class FitResult(NamedTuple):
    best_epoch: int  # counted from 1
    best_path: Path
    valid: Scores
    test: Scores
    seconds: float


def fit(config: Config, resume: bool = False) -> FitResult:
    """Trains as configured, then scores the best epoch on the validation and the test set.

    Args:
        resume: continue the run in `training.output` from its last.ckpt.

    Raises:
        ConfigError, DataError, CheckpointError: before anything is written.
        TrainingError: the model diverged; last.ckpt holds the epoch before.
        KeyboardInterrupt: after Ctrl-C; last.ckpt holds the last whole epoch.
    """
    started = time.monotonic()
    keep_memory()
    with Heartbeat("reading the data") as pulse:
        folder = Path(config.training.output)
        done = check_folder(folder, config, resume)
        device = _device(config.training)
        pl.seed_everything(config.training.seed, workers=True, verbose=False)
        splits = config.load_data()
        config = config.with_measured(splits)
        model = config.build_model(_count_chunks(splits, config.training.chunk_length))
        data, module = SequenceData(splits, config), TrainingModule(model, config)
        run = RunDirectory(folder, done, config.training.report_every, pulse)
        with creating(folder), quiet(), first_rank():
            with replacing(folder / "config.yaml") as part:
                part.write_text(config.to_yaml(), encoding="utf-8")
            trainer = _make_trainer(config.training, run, device)
            pulse.say(_describe(config, splits, model, device))
            pulse.doing = lambda: _doing(trainer)
            _run(trainer, module, data, folder / "last.ckpt" if resume else None)
        pulse.doing = "scoring the validation and the test set"
        best = folder / "best.ckpt"
        epoch = read_checkpoint(best)["vssn"]["epoch"]
        model, _ = load_model(best)
        model.to(device)
        valid, test = (evaluate(model, loader) for loader in (data.valid, data.test))
    return FitResult(epoch, best, valid, test, time.monotonic() - started)


def _describe(config: Config, splits: Splits, model: SequenceModel, device: torch.device) -> str:
    counts = ", ".join(
        f"{len(part)} {name}" for name, part in zip(("training", "validation", "test"), splits, strict=True)
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    describe = config.data.row.describe
    more = "" if describe is None else describe(splits.train)
    return f"{config.data.set}: {counts} sequences{more}; {parameters:,} parameters; on {device.type}"


def _doing(trainer: pl.Trainer) -> str | None:
    """What training is at; None where a bar shows it."""
    if trainer.progress_bar_callback is not None:
        return None
    what = "validation" if trainer.validating else f"update {trainer.global_step}"
    return f"epoch {trainer.current_epoch + 1:>3}  {what}"


def _device(training: TrainingSection) -> torch.device:
    if training.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.accelerator: expected 'cpu' or 'auto' as there is no CUDA device, got 'cuda'")
    cuda = training.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", 0) if cuda else torch.device("cpu")


def _count_chunks(splits: Splits, chunk_length: int | None) -> int:
    """Among so many losses of an epoch the KL of universal weights is shared."""
    if chunk_length is None:
        return len(splits.train)
    return sum(max(1, -(-length // chunk_length)) for length in splits.train.lengths)


def _make_trainer(training: TrainingSection, run: RunDirectory, device: torch.device) -> pl.Trainer:
    show_bar = sys.stdout.isatty()
    callbacks: list[pl.Callback] = [run]
    if show_bar:
        callbacks.append(ProgressBar(refresh_rate=5, leave=False))
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(MONITOR, patience=training.early_stopping_patience, mode="max"))
    if training.max_minutes is not None:
        callbacks.append(Timer(timedelta(minutes=training.max_minutes), interval="step", verbose=False))
    return pl.Trainer(
        max_epochs=training.max_epochs,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision=training.precision,
        logger=TensorBoardLogger(run.folder, name="tensorboard", version=""),
        callbacks=callbacks,
        default_root_dir=run.folder,
        enable_checkpointing=True,
        enable_progress_bar=show_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        plugins=[OneProcess()],
    )


def _run(trainer: pl.Trainer, module: TrainingModule, data: SequenceData, checkpoint: Path | None) -> None:
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    except SystemExit:  # what Lightning makes of Ctrl-C, ignoring the next ones
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
    if trainer.interrupted:
        raise KeyboardInterrupt
