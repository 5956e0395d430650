"""What Lightning trains: the model under its optimizer with the schedules of an update and of an epoch, and the data.

Long sequences may be cut into chunks of `training.chunk_length` frames (truncated back-propagation). An update is one
chunk of a batch. Each sequence hands its state (d, z, x_last) on to its next chunk, without a gradient, and starts
anew where it starts; what looks ahead, the backward recurrence a and that of `noise_smoothing`, starts from 0 at the
end of every chunk: q(z_t | z_{t-1}, d, x_{t..end of the chunk}). That is a posterior like another, so the sum over
the chunks is a strict bound too. Validation and the scores take whole sequences.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vssn.data.batching import LengthBucketSampler, SequenceBatch, sequence_loader
from vssn.data.splits import Splits
from vssn.errors import TrainingError
from vssn.inference.scoring import draw_noise, sequence_sums, state_behind, summarize
from vssn.nn.given import LOWER, require_converged
from vssn.nn.interface import Hiding, SequenceModel, SequenceOutput
from vssn.nn.model_files import describe
from vssn.nn.particles import ParticleNoise
from vssn.training.config import Config
from vssn.training.constraint import Multiplier
from vssn.training.divergence import any_of_all, gradient_norm, what_is_not_finite
from vssn.training.objectives import bound_column
from vssn.training.processes import World, gather_rows, share, share_of_noise, sum_gradients
from vssn.training.run_directory import MONITOR, SCORES
from vssn.training.sections import TrainingSection
from vssn.utils.checkpoint_file import FORMAT
from vssn.utils.evaluation_mode import time_major
from vssn.utils.packages import needing
from vssn.utils.random import mixed_seed
from vssn.utils.values import looked_at

with needing("train"):
    import pytorch_lightning as pl


MOST_SKIPPED = 10  # updates in a row that are left out, and an epoch of them: the run ends
VALIDATION_SEED = 0  # every epoch is validated with the same noise, that of `evaluate`


def kl_weight(update: int, config: TrainingSection) -> float:
    """Factor of the KLs: rises from kl_start to 1 over kl_anneal_updates, kl_cycles times, as long at 1 in between."""
    rise = config.kl_anneal_updates
    if rise == 0 or update >= (2 * config.kl_cycles - 1) * rise:
        return 1.0
    progress = update % (2 * rise) / rise
    return min(1.0, config.kl_start + (1 - config.kl_start) * progress)


def initial_kl_weight(update: int, config: TrainingSection) -> float | None:
    """Factor of the KL of an inferred d_0; None: that of the others."""
    rise = config.initial_kl_anneal_updates
    if rise is None:
        return None
    progress = min(1.0, max(0, update - config.initial_kl_anneal_after) / rise)
    return config.kl_start + (1 - config.kl_start) * progress


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
    """A model under AdamW. An update is one chunk of a batch; without `chunk_length` a batch is one chunk."""

    def __init__(self, model: SequenceModel, config: Config, world: World = World()) -> None:  # noqa: B008  # a tuple
        super().__init__()
        self.model, self.config, self.world = model, config, world
        self.automatic_optimization = False
        self.train_sums: list[Tensor] = []
        self.train_losses: list[Tensor] = []
        self.valid_sums: list[Tensor] = []
        self.valid_losses: list[Tensor] = []
        self.particles: int | None = getattr(model, "particle_count", None)  # of the objective
        constraint = config.training.constraint
        self.multiplier = None if constraint is None else Multiplier(constraint)
        self.metrics: dict[str, float] = {}  # of the epoch, in full precision
        self.updates = self.skipped = 0  # of the epoch; tried, and left out of these
        self.all_skipped = self.in_a_row = 0  # of the run, and the last ones of it

    def configure_optimizers(self) -> torch.optim.Optimizer:
        training = self.config.training
        return torch.optim.AdamW(self.model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)

    def on_train_epoch_start(self) -> None:
        self.updates = self.skipped = 0
        for group in self._optimizer().param_groups:
            group["lr"] = learning_rate(self.current_epoch, self.config.training)

    def _optimizer(self) -> Any:
        return self.optimizers()

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        training, optimizer = self.config.training, self._optimizer()
        torch.manual_seed(mixed_seed(training.seed, self.global_step))
        chunks = cut(batch, training.chunk_length)
        whole = len(chunks) == 1 and self.world.size == 1
        state = loss = None
        for chunk in chunks:
            own = share(chunk, self.world)
            if state is not None:
                state = type(state)(*(part[: own.x.shape[1]].detach() for part in state))
                require_converged(state, self._diverged())
            optimizer.zero_grad()
            self.updates += 1
            sums = own_loss = None
            hiding = self._hide_share(chunk, own)  # before the noise, as a model alone draws it
            noise = self._draw_share(chunk, own)
            measured = torch.zeros(2, dtype=torch.float64, device=self.device)
            if own.lengths.numel():
                options: dict[str, Any] = {"kl_weight": self._kl_weight()}
                if (initial := initial_kl_weight(self.global_step, training)) is not None:
                    options["initial_kl_weight"] = initial
                if training.coordinated_dropout:
                    options["coordinated_dropout"] = hiding
                with time_major(self.model):
                    output: SequenceOutput = self.model(own.x, own.u, own.lengths, state=state, noise=noise, **options)
                state, own_loss = output.state, output.loss
                if self.multiplier is not None:
                    own_loss = own_loss * self.multiplier.value.to(own_loss.dtype)
                    masked = bool(getattr(self.model, "masked", False))
                    measured = self.multiplier.measure(output.reconstruction, own.x, own.lengths, masked)
                # Every frame of a batch weighs the same, also in a last chunk that holds few of them.
                part = 1.0 if whole else len(chunks) * own.lengths.sum() / batch.lengths.sum()
                self.manual_backward(own_loss * part)
                sums, own_loss = sequence_sums(output, own.lengths), own_loss.detach()
            sum_gradients(self.model, self.world)
            if self._clip_or_skip(own_loss):
                break  # the next chunk's state comes of this one
            optimizer.step()
            if self.multiplier is not None:
                self.multiplier.update(measured, self.world)
            if sums is not None and own_loss is not None:
                self.train_sums.append(sums)
                self.train_losses.append(own_loss * own.lengths.sum())
                loss = own_loss
        if loss is not None:
            self.log("loss", loss, prog_bar=True, logger=False, batch_size=1)

    def _diverged(self) -> str:
        return f"training diverged in epoch {self.current_epoch + 1}"

    def _kl_weight(self) -> float | Tensor:
        if self.multiplier is not None:
            return 1 / self.multiplier.value
        return kl_weight(self.global_step, self.config.training)

    def _clip_or_skip(self, loss: Tensor | None) -> bool:
        """Clips the gradients, unless the update is to be left out. Raises TrainingError: it is not finite, and
        `on_nan` says stop."""
        training = self.config.training
        looks = looked_at(self.device) or training.on_nan == "skip"
        if training.gradient_clip_norm is None and not looks:
            return False
        norm = gradient_norm(self.model)
        wrong = what_is_not_finite(self.model, loss, norm) if looks else None
        if training.on_nan == "skip":
            if any_of_all(wrong is not None, self.device, self.world):
                self.skipped += 1
                self.all_skipped += 1
                self.in_a_row += 1
                return True
            self.in_a_row = 0
        elif wrong is not None:
            raise TrainingError(
                f"{self._diverged()}, update {self.global_step + 1}: {wrong}; {LOWER}, or set training.on_nan to skip"
            )
        if training.gradient_clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), training.gradient_clip_norm, norm)
        return False

    def _draw_share(self, chunk: SequenceBatch, own: SequenceBatch) -> tuple[Any, ...] | None:
        """The noise that a single process would draw for these sequences; None where the model draws it itself."""
        if self.world.size == 1:
            return None
        if self.particles is not None:
            return self._share_of_particles(ParticleNoise.draw(self.model, chunk.x, self.particles), own)
        shapes = self.model.noise_shapes(*chunk.x.shape[:2])
        return share_of_noise(tuple(own.x.new_empty(shape).normal_() for shape in shapes), own, self.world)

    def _share_of_particles(self, noise: ParticleNoise, own: SequenceBatch) -> ParticleNoise:
        return noise.part(own.x.shape[0], slice(self.world.rank, None, self.world.size))

    def _hide_share(self, chunk: SequenceBatch, own: SequenceBatch) -> float | Hiding:
        """The share that coordinated dropout hides; of several processes with the entries that one would draw."""
        rate = self.config.training.coordinated_dropout
        if self.world.size == 1 or not rate:
            return rate
        (entries,) = share_of_noise((Hiding.draw(rate, chunk.x).entries,), own, self.world)
        return Hiding(rate, entries)

    def on_validation_epoch_start(self) -> None:
        self.valid_noise = torch.Generator(self.device).manual_seed(VALIDATION_SEED)
        self.valid_particles = torch.Generator(self.device).manual_seed(
            VALIDATION_SEED + 1
        )  # the others than the first

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        own, before = share(batch, self.world), batch.before
        noise_before = None if before is None else draw_noise(self.model, before.x, self.valid_noise)
        noise: tuple[Any, ...] = draw_noise(self.model, batch.x, self.valid_noise)
        several = None
        if self.particles is not None:  # the parts are of the noise that they have with any objective
            several = ParticleNoise.draw(self.model, batch.x, self.particles, self.valid_particles).with_first(noise)
        if not own.lengths.numel():
            return
        with time_major(self.model):
            state = None
            if own.before is not None and noise_before is not None:
                noise_before = share_of_noise(noise_before, own.before, self.world)
                state = state_behind(self.model, own.before, noise_before, self._diverged())
            if several is None:
                noise = share_of_noise(noise, own, self.world)
            else:
                noise = self._share_of_particles(several, own)
            output = self.model(own.x, own.u, own.lengths, state=state, noise=noise)
        self.valid_sums.append(sequence_sums(output, own.lengths))
        self.valid_losses.append(output.loss * own.lengths.sum())

    def on_validation_epoch_end(self) -> None:
        self._log_scores("valid", self.valid_sums, self.valid_losses)

    def on_train_epoch_end(self) -> None:
        weight = float(self._kl_weight())
        rate = learning_rate(self.current_epoch, self.config.training)
        self._log({"kl_weight": weight, "learning_rate": rate})
        if (initial := initial_kl_weight(self.global_step, self.config.training)) is not None:
            self._log({"initial_kl_weight": initial})
        if self.multiplier is not None:
            self._log(self.multiplier.state())
        if self.skipped == self.updates and self.in_a_row >= MOST_SKIPPED:
            raise TrainingError(f"{self._diverged()}: none of the last {self.in_a_row} updates is finite; {LOWER}")
        if self.config.training.on_nan == "skip":
            self.log("skipped_updates", float(self.skipped))
        self._log_scores("train", self.train_sums, self.train_losses)

    def _log_scores(self, split: str, sums: list[Tensor], losses: list[Tensor]) -> None:
        """One transfer from the device for an epoch. `loss` is the objective's; `elbo` is strict, whatever it is."""
        rows, loss = torch.zeros(0, 5, dtype=torch.float64), 0.0
        if sums:
            rows, loss = torch.cat(sums).cpu(), float(torch.stack(losses).double().sum())
        rows, loss = gather_rows(rows, loss, self.world)
        scores = summarize(rows)
        values = (
            loss / scores.frames if scores.frames else math.nan,  # all of its updates were left out
            scores.micro,
            scores.kl_z,
            scores.kl_w,
        )
        self._log({f"{split}/{name}": value for name, value in zip(SCORES, values, strict=True)})
        bound = None if self.particles is None else bound_column(getattr(self.model, "objective", ""))
        if split == "valid" and bound is not None:
            shared = self._kl_of_weights() * scores.sequences
            self._log({bound: (shared - loss) / scores.frames})
        sums.clear()
        losses.clear()

    def _kl_of_weights(self) -> float:
        """What a sequence adds to the loss beside the objective."""
        kl, count = self.model.weights_kl(), self.model.num_sequences  # type: ignore[operator]
        return 0.0 if kl is None or count is None else float(kl) / count

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
            "model": describe(self.model),
            "epoch": self.current_epoch + 1,
            "valid_elbo_per_frame": self.metrics[MONITOR],
            "skipped_updates": self.all_skipped,
            "skipped_in_a_row": self.in_a_row,
        }
        if self.multiplier is not None:
            checkpoint["vssn"]["constraint"] = self.multiplier.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.all_skipped = checkpoint["vssn"].get("skipped_updates", 0)
        self.in_a_row = checkpoint["vssn"].get("skipped_in_a_row", 0)
        before = checkpoint["vssn"].get("constraint")
        if self.multiplier is not None and before is not None:
            self.multiplier.load(before)
