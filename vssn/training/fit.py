"""Training on Lightning: `fit(config)` fills a folder with a run.

    config.yaml  metrics.csv (a row per epoch)  best.ckpt  last.ckpt  tensorboard/

Long sequences may be cut into chunks of `training.chunk_length` frames (truncated back-propagation). An update is one
chunk of a batch. Each sequence hands its state (d, z, x_last) on to its next chunk, without a gradient, and starts
anew where it starts; what looks ahead, the backward recurrence a and that of `noise_smoothing`, starts from 0 at the
end of every chunk: q(z_t | z_{t-1}, d, x_{t..end of the chunk}). That is a posterior like another, so the sum over
the chunks is a strict bound too. Validation and the scores take whole sequences.

A run continues from last.ckpt exactly as if it had not stopped: the order and the learning rate of an epoch
follow from its number and the seeds, the noise and the KL weight of an update likewise.
"""

from __future__ import annotations

import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from vssn.data.batching import LengthBucketSampler, SequenceBatch, sequence_loader
from vssn.data.splits import Splits
from vssn.errors import ConfigError, TrainingError
from vssn.inference.scoring import Scores, draw_noise, evaluate, sequence_sums, summarize
from vssn.models.vssn import VSSN
from vssn.nn.layer import State
from vssn.training.checkpoints import FORMAT, load_model, read_checkpoint
from vssn.training.config import Config
from vssn.training.heartbeat import Heartbeat
from vssn.training.run_directory import MONITOR, SCORES, RunFolder, check_folder, creating, replacing
from vssn.training.sections import TrainingSection
from vssn.training.trainer import OneProcess, ProgressBar, first_rank, quiet
from vssn.utils.evaluation_mode import time_major
from vssn.utils.random import mixed_seed
from vssn.utils.values import looked_at
from vssn_kernels import keep_memory

VALIDATION_SEED = 0  # every epoch is validated with the same noise, that of `evaluate`


class FitResult(NamedTuple):
    best_epoch: int  # counted from 1
    best_path: Path
    valid: Scores
    test: Scores
    seconds: float


def kl_weight(update: int, config: TrainingSection) -> float:
    """Factor of the KLs: rises from kl_start to 1 over kl_anneal_updates, kl_cycles times, as long at 1 in between."""
    rise = config.kl_anneal_updates
    if rise == 0 or update >= (2 * config.kl_cycles - 1) * rise:
        return 1.0
    progress = update % (2 * rise) / rise
    return min(1.0, config.kl_start + (1 - config.kl_start) * progress)


def learning_rate(epoch: int, config: TrainingSection) -> float:
    """Of an epoch counted from 0."""
    return config.learning_rate * config.lr_decay ** max(0, epoch + 1 - config.lr_decay_after)


def cut(batch: SequenceBatch, chunk_length: int | None) -> list[SequenceBatch]:
    """The batch in chunks of up to chunk_length frames, longest sequences first; those that have ended are left out."""
    if chunk_length is None or batch.x.shape[0] <= chunk_length:
        return [batch]
    order = batch.lengths.argsort(descending=True, stable=True)
    x, u = batch.x[:, order], None if batch.u is None else batch.u[:, order]
    lengths = batch.lengths[order]
    longest_first: list[int] = lengths.tolist()
    chunks = []
    for start in range(0, longest_first[0], chunk_length):
        alive = sum(length > start for length in longest_first)
        frames, columns = slice(start, start + chunk_length), slice(alive)
        chunks.append(
            SequenceBatch(
                x[frames, columns],
                (lengths[columns] - start).clamp(max=chunk_length),
                None if u is None else u[frames, columns],
            )
        )
    return chunks


class SequenceData(pl.LightningDataModule):
    def __init__(self, splits: Splits, config: Config) -> None:
        super().__init__()
        self.train = self._loader(splits.train, config, shuffle=True)
        self.valid = self._loader(splits.valid, config)
        self.test = self._loader(splits.test, config)

    @staticmethod
    def _loader(dataset: Any, config: Config, shuffle: bool = False) -> DataLoader[SequenceBatch]:
        data = config.data
        return sequence_loader(dataset, data.batch_size, shuffle=shuffle, seed=data.seed, num_workers=data.workers)

    def train_dataloader(self) -> DataLoader[SequenceBatch]:
        """Asked for before every epoch: a resumed run would otherwise start with the order of epoch 0."""
        assert isinstance(self.train.batch_sampler, LengthBucketSampler)
        assert self.trainer is not None
        self.train.batch_sampler.set_epoch(self.trainer.current_epoch)
        return self.train

    def val_dataloader(self) -> DataLoader[SequenceBatch]:
        return self.valid


class TrainingModule(pl.LightningModule):
    """A VSSN under AdamW. An update is one chunk of a batch; without `chunk_length` a batch is one chunk."""

    def __init__(self, model: VSSN, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.automatic_optimization = False
        self.train_sums: list[Tensor] = []
        self.train_losses: list[Tensor] = []
        self.valid_sums: list[Tensor] = []
        self.valid_losses: list[Tensor] = []
        self.metrics: dict[str, float] = {}  # of the epoch, in full precision

    def configure_optimizers(self) -> torch.optim.Optimizer:
        training = self.config.training
        return torch.optim.AdamW(self.model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)

    def on_train_epoch_start(self) -> None:
        for group in self._optimizer().param_groups:
            group["lr"] = learning_rate(self.current_epoch, self.config.training)

    def _optimizer(self) -> Any:
        return self.optimizers()

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        training, optimizer = self.config.training, self._optimizer()
        torch.manual_seed(mixed_seed(training.seed, self.global_step))
        chunks = cut(batch, training.chunk_length)
        state = None
        for chunk in chunks:
            if state is not None:
                state = State(*(part[: chunk.x.shape[1]].detach() for part in state))
                if looked_at(self.device) and not all(bool(part.isfinite().all()) for part in state):
                    raise TrainingError(  # before the model refuses it as a wrong argument
                        f"training diverged in epoch {self.current_epoch + 1}: a state is not finite; "
                        "lower training.learning_rate or training.gradient_clip_norm"
                    )
            with time_major(self.model):
                output = self.model(
                    chunk.x, chunk.u, chunk.lengths, state=state, kl_weight=kl_weight(self.global_step, training)
                )
            state = output.state
            # Every frame of a batch weighs the same, also in a last chunk that holds few of them.
            share = len(chunks) * chunk.lengths.sum() / batch.lengths.sum() if len(chunks) > 1 else 1.0
            optimizer.zero_grad()
            self.manual_backward(output.loss * share)
            if training.gradient_clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clip_norm)
            optimizer.step()
            self.train_sums.append(sequence_sums(output, chunk.lengths))
            self.train_losses.append(output.loss.detach() * chunk.lengths.sum())
        self.log("loss", output.loss.detach(), prog_bar=True, logger=False, batch_size=1)

    def on_validation_epoch_start(self) -> None:
        self.valid_noise = torch.Generator(self.device).manual_seed(VALIDATION_SEED)

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        noise = draw_noise(self.model, batch.x, self.valid_noise)
        with time_major(self.model):
            output = self.model(batch.x, batch.u, batch.lengths, noise=noise)
        self.valid_sums.append(sequence_sums(output, batch.lengths))
        self.valid_losses.append(output.loss * batch.lengths.sum())

    def on_validation_epoch_end(self) -> None:
        self._log_scores("valid", self.valid_sums, self.valid_losses)

    def on_train_epoch_end(self) -> None:
        weight = kl_weight(self.global_step, self.config.training)
        rate = learning_rate(self.current_epoch, self.config.training)
        self._log({"kl_weight": weight, "learning_rate": rate})
        self._log_scores("train", self.train_sums, self.train_losses)

    def _log_scores(self, split: str, sums: list[Tensor], losses: list[Tensor]) -> None:
        """One transfer from the device for an epoch. `loss` is the objective's; `elbo` is strict, whatever it is."""
        scores = summarize(torch.cat(sums).cpu())
        values = (
            float(torch.stack(losses).double().sum()) / scores.frames,
            scores.micro,
            scores.kl_z,
            scores.kl_w,
        )
        self._log({f"{split}/{name}": value for name, value in zip(SCORES, values, strict=True)})
        sums.clear()
        losses.clear()

    def _log(self, values: dict[str, float]) -> None:
        self.metrics |= values
        for name, value in values.items():
            self.log(name, value, prog_bar=name == MONITOR)
        self.log("epoch", float(self.current_epoch + 1))  # Lightning's own counts from 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vssn"] = {
            "format": FORMAT,
            "config": self.config.model_dump(mode="json"),
            "num_sequences": self.model.num_sequences,
            "epoch": self.current_epoch + 1,
            "valid_elbo_per_frame": self.metrics[MONITOR],
        }


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
        run = RunFolder(folder, done, config.training.report_every, pulse)
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


def _describe(config: Config, splits: Splits, model: VSSN, device: torch.device) -> str:
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


def _make_trainer(training: TrainingSection, run: RunFolder, device: torch.device) -> pl.Trainer:
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
