"""Training on Lightning: `fit(config)` fills a folder with a run.

    config.yaml  metrics.csv (a row per epoch)  best.ckpt  last.ckpt  tensorboard/

A run continues from last.ckpt exactly as if it had not stopped: the order and the learning rate of an epoch
follow from its number and the seeds, the noise and the KL weight of an update likewise.
"""

from __future__ import annotations

import contextlib
import inspect
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vssn.data.batching import SequenceDataset
from vssn.data.files import FileDataset
from vssn.data.splits import MASK_IN_YAML, DrawnDataset, Splits, as_splits, check_values, in_memory
from vssn.errors import CheckpointError, ConfigError, DataError, RunningError, UserError
from vssn.inference.scoring import Scores, evaluate
from vssn.nn.interface import SequenceModel
from vssn.training.checkpoints import load_model, read_checkpoint, read_weights
from vssn.training.config import Config, as_config, config_of, load_config
from vssn.training.config_errors import first_line
from vssn.training.heartbeat import Heartbeat, print_line
from vssn.training.module import SequenceData, TrainingModule
from vssn.training.objectives import check_initial_annealing, check_objective, more_columns
from vssn.training.processes import World, require_started, wait_for_all
from vssn.training.run_directory import MONITOR, RunDirectory, check_folder, creating, folder_of, identity
from vssn.training.scale import warn_of_scale
from vssn.training.sections import TrainingSection
from vssn.training.trainer import (
    Patience,
    PlainStates,
    Processes,
    ProgressBar,
    SummedGradients,
    WholeFiles,
    check_callbacks,
    quiet,
    rank_of,
    unseeded,
)
from vssn.utils.checks import require_flag
from vssn.utils.command import Terminated, replacing
from vssn.utils.packages import needing
from vssn.utils.scaling import Scaling
from vssn.utils.values import REAL, one_word_of_rounding, warn_of_rounding
from vssn_kernels import keep_memory

with needing("train"):
    import pytorch_lightning as pl
    import tensorboard  # type: ignore[import-untyped]  # noqa: F401  # that logger writes with it
    from pytorch_lightning.callbacks import Timer
    from pytorch_lightning.loggers import TensorBoardLogger


class FitResult(NamedTuple):
    best_epoch: int  # counted from 1
    best_path: Path
    valid: Scores
    test: Scores  # `valid` itself where the data has no test part
    seconds: float
    model: SequenceModel  # of the best epoch, in evaluation mode


@unseeded()
def fit(
    config: Config | Mapping[str, Any] | str | Path | SequenceModel,
    splits: object = None,
    callbacks: Sequence[pl.Callback] = (),
    resume: bool = False,
    *,
    data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    verbose: bool = True,
) -> FitResult:
    """Trains as configured, then scores the best epoch on the validation and the test set.

        vssn.fit("jsb")                                         # a packaged configuration and its set
        vssn.fit("music-vssn", (train, valid, test))            # the same model on data of your own
        vssn.fit({"model": {"hidden_size": 64, "latent_size": 8}}, {"train": x, "valid": y, "test": z})
        vssn.fit(model, (train, valid, test), training={"output": "runs/mine", "max_epochs": 20})

    What is drawn follows from `training.seed`; the generators of Python, NumPy and PyTorch go on behind the call as if
    it had not been.

    Args:
        config: a `Config`, a dict of its sections, the path of a YAML file or the name of a packaged one. Or a model,
            which is trained in place, from its weights on, and holds those of the best epoch then.
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
        data, training: keys of these sections with a model: they have no configuration to stand in.
        verbose: print a line an epoch, and what takes long; on a terminal a bar too.
        resume: continue the run in `training.output` from its last.ckpt, unless it has ended; a first epoch that
            max_minutes cut short is done again. True in the place of `splits` means this too.

    Raises:
        ConfigError, DataError, CheckpointError, TypeError: before anything is written.
        TrainingError: the model diverged; last.ckpt holds the epoch before.
        RunningError: another process trains in that folder.
        KeyboardInterrupt, SystemExit: after Ctrl-C, after SIGTERM; last.ckpt holds the last whole epoch.
    """
    if isinstance(splits, bool):  # fit(config, resume), as it was once
        splits, resume = None, splits or resume
    require_flag("resume", resume)
    require_flag("verbose", verbose)
    check_callbacks(callbacks)
    own = config if isinstance(config, SequenceModel) else None
    config = _configured(config, splits is not None, resume, data, training)
    started = time.monotonic()
    keep_memory()
    world = require_started(config.training)
    speaks = world.writes and verbose
    with Heartbeat("reading the data", print_line if speaks else _say_nothing) as pulse:
        missing = bool(getattr(own or config.model, "masked", False))
        loaded = None if splits is None else as_splits(splits, missing)
        if loaded is not None:
            config = config.with_given_data(loaded)
        elif config.data.row.x_size is None:  # of "given" this says what is missing
            loaded = config.load_data()
            config = config.with_measured(loaded)
        folder = folder_of(config)
        done = check_folder(folder, config, resume)
        device = _device(config.training, world)
        pl.seed_everything(config.training.seed, workers=True, verbose=False)
        if loaded is None:
            loaded = config.load_data()
            config = config.with_measured(loaded)
        chunks = _count_chunks(loaded, config.training.chunk_length)
        if own is not None:
            _require_fit(own, config)
        model = config.build_model(chunks, _scaling(config, loaded)) if own is None else own
        if config.training.precision == "64-true":
            model.double()  # before Lightning does: it loads the weights of a resumed run first
        if config.data.row.values is None:
            _check_values(loaded, model, missing)
            if world.writes and not resume:
                warn_of_scale(loaded, model, own is not None)
        batches, module = SequenceData(loaded, config), TrainingModule(model.train(), config, world)
        columns = more_columns(config.training, getattr(model, "objective", "elbo"))
        run = RunDirectory(folder, done, config.training.report_every, pulse, columns)
        with creating(folder) if world.writes else contextlib.nullcontext(), quiet(), rank_of(world):
            if world.writes:
                if check_folder(folder, config, resume) != done:  # another process had it until now
                    raise RunningError(f"training.output: {folder} has become another run meanwhile; continue that one")
                run.place = identity(folder)
                if not (resume and _is_config(folder / "config.yaml", config)):  # whose comments stay
                    with replacing(folder / "config.yaml") as part:
                        part.write_text(config.to_yaml(), encoding="utf-8")
            trainer = _make_trainer(config.training, [run, *callbacks], folder, device, world, speaks)
            pulse.say(_describe(config, loaded, model, device))
            pulse.doing = lambda: _doing(trainer)
            _run(trainer, module, batches, folder / "last.ckpt" if done else None, run)
            wait_for_all(world)
        pulse.doing = "scoring the validation" + (" set" if loaded.test is loaded.valid else " and the test set")
        best = folder / "best.ckpt"
        epoch = read_checkpoint(best)["vssn"]["epoch"]
        if own is None:
            model, _ = load_model(best)
        else:
            model.load_state_dict(read_weights(best))
        model.to(device).eval()
        valid = evaluate(model, batches.valid)
        test = valid if loaded.test is loaded.valid else evaluate(model, batches.test)
    return FitResult(epoch, best, valid, test, time.monotonic() - started, model)


def _is_config(file: Path, config: Config) -> bool:
    with contextlib.suppress(ConfigError):
        return load_config(file) == config
    return False


def _configured(
    config: object,
    own_data: bool,
    resume: bool,
    data: Mapping[str, Any] | None,
    training: Mapping[str, Any] | None,
) -> Config:
    if not isinstance(config, SequenceModel):
        for name, section in (("data", data), ("training", training)):
            if section is not None:
                raise TypeError(f"{name} must be left out with a configuration; set its section {name}")
        return as_config(config, own_data=own_data)
    if resume:
        raise ConfigError(
            "resume: expected a configuration to continue from, got a model; name the run's own: "
            "fit('RUN/config.yaml', splits, resume=True)"
        )
    return config_of(config, data or {}, training or {}, own_data)


def _require_fit(model: SequenceModel, config: Config) -> None:
    """Raises DataError where the model has other sizes than the data, ConfigError where it knows no hidden entries."""
    x_size, control_size = config.data.sizes
    for letter, name, size, came in (
        ("x", "x_size", model.x_size, x_size),
        ("u", "control_size", model.control_size, control_size if model.control_size else 0),
    ):
        if size != came:
            raise DataError(f"splits: expected {letter} of {size} features as the model's {name}, got {came}")
    dtype, precision = model.a_parameter().dtype, config.training.precision
    if dtype != torch.float32 and precision != "64-true":
        if dtype == torch.float64:
            wanted = f"expected '64-true' with a model in {dtype}, got {precision!r}"
        else:
            wanted = f"{precision!r} expects a model in torch.float32, got {dtype}"
        raise ConfigError(f"training.precision: {wanted}; change it, or convert the model with .float()")
    check_objective(config.training, getattr(model, "objective", "elbo"))
    check_initial_annealing(config.training, model)
    if config.training.coordinated_dropout:
        where = "training.coordinated_dropout: expected 0 with"
        if "coordinated_dropout" not in inspect.signature(model.forward).parameters:
            raise ConfigError(f"{where} a {type(model).__name__}, which does not take it; leave it out")
        if model.likelihood.whole_frames:
            raise ConfigError(f"{where} {model.likelihood.title}, which knows no part of a frame; leave it out")


def _check_values(splits: Splits, model: SequenceModel, missing: bool) -> None:
    """Of data that is not known beforehand: what stands in memory now, what a Dataset makes when it is drawn; what a
    transform makes meets the model's own check."""
    support, title = model.likelihood.support, model.likelihood.title
    for name, part in splits._asdict().items():
        if isinstance(part, DrawnDataset):
            part.support, part.likelihood = support, title
        advice = {"advice": MASK_IN_YAML} if isinstance(part, FileDataset) else {}
        for where, x, u in _named(name, part):
            check_values(where, x if part.transform is None else None, u, support, title, missing, **advice)
    with one_word_of_rounding():
        for where, x, u in _named("train", splits.train):
            warn_of_rounding(where, x)
            if u is not None:
                warn_of_rounding(f"u of {where}", u)


def _named(name: str, part: SequenceDataset) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """What of a part stands in memory, each as messages call it."""
    names = part.source.names if isinstance(part, FileDataset) else None
    for index, (x, u) in enumerate(in_memory(part)):
        yield f"splits.{name}[{index}]" if names is None else f"x of {names[index]}", x, u


def _scaling(config: Config, splits: Splits) -> Scaling | None:
    """Of the training sequences, before a transform where they stand in memory. Raises DataError: one is infinite, or a
    control is not finite."""
    if not config.data.standardises:
        return None
    train = splits.train
    for where, x, u in _named("train", train):  # NaN is looked at later: here it counts for nothing
        check_values(where, x, u, REAL, "", missing=True)
    items = list(in_memory(train)) or [train[index] for index in range(len(train))]
    controls = [u for _, u in items if u is not None] if config.model.takes_controls else []
    return Scaling.of([x for x, _ in items], controls or None)


def _describe(config: Config, splits: Splits, model: SequenceModel, device: torch.device) -> str:
    parts = [(len(splits.train), "training"), (len(splits.valid), "validation")]
    parts += [] if splits.test is splits.valid else [(len(splits.test), "test")]
    counts = ", ".join(f"{count} {name}" for count, name in parts)
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
    training: TrainingSection,
    own: Sequence[pl.Callback],
    folder: Path,
    device: torch.device,
    world: World,
    speaks: bool,
) -> pl.Trainer:
    callbacks = [PlainStates(), *own]
    show_bar = sys.stdout.isatty() and speaks
    given_bar = any(isinstance(callback, pl.callbacks.ProgressBar) for callback in own)
    if show_bar and not given_bar:
        callbacks.append(ProgressBar(refresh_rate=5, leave=False))
    if training.early_stopping_patience is not None:
        callbacks.append(Patience(MONITOR, patience=training.early_stopping_patience, mode="max"))
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
        plugins=[Processes(world), WholeFiles(folder)],
    )


def _run(
    trainer: pl.Trainer, module: TrainingModule, data: SequenceData, checkpoint: Path | None, run: RunDirectory
) -> None:
    """Raises CheckpointError where training cannot go on from the checkpoint."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    except Terminated:
        raise
    except SystemExit:  # what Lightning makes of SIGTERM; and of Ctrl-C, ignoring the next ones
        signal.signal(signal.SIGINT, on_interrupt)
        raise (Terminated() if trainer.received_sigterm else KeyboardInterrupt()) from None
    except Exception as error:
        if trainer.received_sigterm:  # and so have the workers of its loader
            raise Terminated from None
        if checkpoint is None or run.begun or isinstance(error, UserError | OSError | MemoryError):
            raise
        raise CheckpointError(  # Lightning takes what is in it on trust
            f"{checkpoint}: training cannot go on from it ({type(error).__name__}: {first_line(error)}); use an intact "
            "last.ckpt, or start anew in another folder"
        ) from error
    if trainer.interrupted:
        raise KeyboardInterrupt
