"""Training on Lightning: `fit(config)` fills a folder with a run.

    config.yaml  metrics.csv (a row per epoch)  best.ckpt  last.ckpt  tensorboard/

A run continues from last.ckpt exactly as if it had not stopped: the order and the learning rate of an epoch
follow from its number and the seeds, the noise and the KL weight of an update likewise.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vssn.data.splits import DrawnDataset, Splits, as_splits, check_values, in_memory
from vssn.errors import ConfigError
from vssn.inference.scoring import Scores, evaluate
from vssn.nn.interface import SequenceModel
from vssn.training.checkpoints import load_model, read_checkpoint
from vssn.training.config import Config, as_config
from vssn.training.heartbeat import Heartbeat, print_line
from vssn.training.module import SequenceData, TrainingModule
from vssn.training.processes import World, require_started, wait_for_all
from vssn.training.run_directory import MONITOR, RunDirectory, check_folder, creating, replacing
from vssn.training.sections import TrainingSection
from vssn.training.trainer import PlainStates, Processes, ProgressBar, SummedGradients, check_callbacks, quiet, rank_of
from vssn.utils.checks import require_flag
from vssn.utils.packages import needing
from vssn_kernels import keep_memory

with needing("train"):
    import pytorch_lightning as pl
    import tensorboard  # type: ignore[import-untyped]  # noqa: F401  # that logger writes with it
    from pytorch_lightning.callbacks import EarlyStopping, Timer
    from pytorch_lightning.loggers import TensorBoardLogger


class FitResult(NamedTuple):
    best_epoch: int  # counted from 1
    best_path: Path
    valid: Scores
    test: Scores
    seconds: float


def fit(
    config: Config | Mapping[str, Any] | str | Path,
    splits: object = None,
    callbacks: Sequence[pl.Callback] = (),
    resume: bool = False,
) -> FitResult:
    """Trains as configured, then scores the best epoch on the validation and the test set.

        vssn.fit("jsb")                                         # a packaged configuration and its set
        vssn.fit("music-vssn", (train, valid, test))            # the same model on data of your own
        vssn.fit({"model": {"hidden_size": 64, "latent_size": 8}}, {"train": x, "valid": y, "test": z})

    Args:
        config: a `Config`, a dict of its sections, the path of a YAML file or the name of a packaged one.
        splits: the data, in the place of the set that `config` names: a tuple or a list of three parts, or a dict with
            train, valid and test. A part is one of
                an array or a tensor [N, T, X]: N sequences of T frames;
                a list of arrays or tensors [T_i, X], of any lengths;
                a tuple (x, u) of two such, or a list of pairs (x_i, u_i): frames with their controls [.., T, U];
                a torch Dataset with a length, whose items are x [T_i, X], (x,) or (x, u); every item is drawn once
                beforehand, for its length;
                a `vssn.data.batching.SequenceDataset`, taken as it is, transform included.
            Numbers are real and become float32. X and U are those of the data; the model takes u with
            model.control "external" or "both". The run keeps the sizes of the data and a
            fingerprint of what stands in memory as the set "given", not the data: to resume, or to score a checkpoint,
            give it again. None: the set of the configuration is loaded.
        callbacks: of PyTorch Lightning, beside the trainer's own. What `state_dict` returns goes into the checkpoints,
            which hold tensors and plain types alone.
        resume: continue the run in `training.output` from its last.ckpt. True in the place of `splits` means this too.

    Raises:
        ConfigError, DataError, CheckpointError, TypeError: before anything is written.
        TrainingError: the model diverged; last.ckpt holds the epoch before.
        KeyboardInterrupt: after Ctrl-C; last.ckpt holds the last whole epoch.
    """
    if isinstance(splits, bool):  # fit(config, resume), as it was once
        splits, resume = None, splits or resume
    require_flag("resume", resume)
    check_callbacks(callbacks)
    config = as_config(config, own_data=splits is not None)
    started = time.monotonic()
    keep_memory()
    world = require_started(config.training)
    with Heartbeat("reading the data", print_line if world.writes else _say_nothing) as pulse:
        given = None if splits is None else as_splits(splits)
        if given is not None:
            config = config.with_given_data(given)
        elif config.data.row.from_python:
            config.load_data()  # says what is missing
        folder = Path(config.training.output)
        done = check_folder(folder, config, resume)
        device = _device(config.training, world)
        pl.seed_everything(config.training.seed, workers=True, verbose=False)
        loaded = given
        if loaded is None:
            loaded = config.load_data()
            config = config.with_measured(loaded)
        model = config.build_model(_count_chunks(loaded, config.training.chunk_length))
        if config.training.precision == "64-true":
            model.double()  # before Lightning does: it loads the weights of a resumed run first
        if given is not None:
            _check_values(given, model)
        data, module = SequenceData(loaded, config), TrainingModule(model, config, world)
        run = RunDirectory(folder, done, config.training.report_every, pulse)
        with creating(folder) if world.writes else contextlib.nullcontext(), quiet(), rank_of(world):
            if world.writes:
                with replacing(folder / "config.yaml") as part:
                    part.write_text(config.to_yaml(), encoding="utf-8")
            trainer = _make_trainer(config.training, [run, *callbacks], folder, device, world)
            pulse.say(_describe(config, loaded, model, device))
            pulse.doing = lambda: _doing(trainer)
            _run(trainer, module, data, folder / "last.ckpt" if resume else None)
            wait_for_all(world)
        pulse.doing = "scoring the validation and the test set"
        best = folder / "best.ckpt"
        epoch = read_checkpoint(best)["vssn"]["epoch"]
        model, _ = load_model(best)
        model.to(device)
        valid, test = (evaluate(model, loader) for loader in (data.valid, data.test))
    return FitResult(epoch, best, valid, test, time.monotonic() - started)


def _check_values(splits: Splits, model: SequenceModel) -> None:
    """Of data from Python: what stands in memory now, what a Dataset makes when it is drawn; what a transform makes
    meets the model's own check."""
    support, title = model.likelihood.support, model.likelihood.title
    for name, part in splits._asdict().items():
        if isinstance(part, DrawnDataset):
            part.support, part.likelihood = support, title
        for index, (x, u) in enumerate(in_memory(part)):
            check_values(f"splits.{name}[{index}]", x if part.transform is None else None, u, support, title)


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


def _say_nothing(line: str) -> None:
    """The first process speaks."""


def _device(training: TrainingSection, world: World) -> torch.device:
    if training.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.accelerator: expected 'cpu' or 'auto' as there is no CUDA device, got 'cuda'")
    cuda = training.accelerator != "cpu" and torch.cuda.is_available()
    if cuda and world.size > 1 and torch.cuda.device_count() < training.devices:
        raise ConfigError(
            f"training.devices: expected at most {torch.cuda.device_count()}, as many as there are, got "
            f"{training.devices}; change it, or take training.accelerator 'cpu'"
        )
    return torch.device("cuda", world.local_rank) if cuda else torch.device("cpu")


def _count_chunks(splits: Splits, chunk_length: int | None) -> int:
    """Among so many losses of an epoch the KL of universal weights is shared."""
    if chunk_length is None:
        return len(splits.train)
    return sum(max(1, -(-length // chunk_length)) for length in splits.train.lengths)


def _make_trainer(
    training: TrainingSection, own: Sequence[pl.Callback], folder: Path, device: torch.device, world: World
) -> pl.Trainer:
    callbacks = [PlainStates(), *own]
    show_bar = sys.stdout.isatty() and world.writes
    given_bar = any(isinstance(callback, pl.callbacks.ProgressBar) for callback in own)
    if show_bar and not given_bar:
        callbacks.append(ProgressBar(refresh_rate=5, leave=False))
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(MONITOR, patience=training.early_stopping_patience, mode="max"))
    if training.max_minutes is not None:
        callbacks.append(Timer(timedelta(minutes=training.max_minutes), interval="step", verbose=False))
    return pl.Trainer(
        max_epochs=training.max_epochs,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=training.devices,
        num_nodes=training.nodes,
        strategy=SummedGradients() if world.size > 1 else "auto",
        precision=training.precision,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=True,
        enable_progress_bar=show_bar or given_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        plugins=[Processes(world)],
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
