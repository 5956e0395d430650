"""Scores of a model on a data set, from the strict ELBO or a tighter bound, in nats per frame.

    F_t = log p(x_t | z_t, d_t) - KL_w,t - KL_z,t

    micro    sum of F_t over all frames of all sequences / number of frames
    macro    mean over sequences of each one's own mean of F_t

both also with the first frame of every sequence left out; a sequence of one frame has no part in those.
Annealing, free bits and the `paper` objective play no role here.

The importance-weighted bounds of `vssn.inference.importance` are averaged the same way. They are bounds for a whole
sequence; without the first frame stands the bound on log p(x_{1:T}) less that on log p(x_1), an estimate and no bound.

Of a sequence with frames before it, a piece of a longer one, the model starts from a draw of its state behind those: in
expectation the scores bound log p(x_{1:T}) given that state from below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.data.batching import SequenceBatch
from vssn.inference.importance import DEFAULT_MEMORY, check_bound, sequence_bounds
from vssn.nn.given import require_converged
from vssn.nn.interface import SequenceModel, SequenceOutput, require_model
from vssn.nn.states import AnyState
from vssn.utils.checks import require_numbers, require_seed, require_shape, require_size, require_tensor
from vssn.utils.evaluation_mode import evaluating, time_major


class Scores(NamedTuple):
    micro: float
    macro: float
    micro_without_first: float
    macro_without_first: float
    kl_z: float  # per frame, over all frames
    kl_w: float
    frames: int
    sequences: int

    def table(self) -> str:
        """A few aligned lines to print."""
        return "\n".join(
            (
                *_averages_table("ELBO", self),
                f"{'KL, nats per frame':<24}{'z':>14}{'w':>16}",
                f"{'':<24}{self.kl_z:>14.4f}{self.kl_w:>16.4f}",
                f"{self.sequences} sequences, {self.frames} frames",
            )
        )


class BoundScores(NamedTuple):
    """Of an importance-weighted bound, in nats per frame."""

    bound: str  # "iwae" or "fivo"
    particles: int
    micro: float
    macro: float
    micro_without_first: float
    macro_without_first: float
    frames_per_resampling: float | None  # None where the bound never resamples
    frames: int
    sequences: int

    def table(self) -> str:
        """A few aligned lines to print."""
        lines = _averages_table(f"{self.bound.upper()}-{self.particles}", self)
        if self.frames_per_resampling is not None:
            lines += (f"resampled every {self.frames_per_resampling:.1f} frames",)
        return "\n".join((*lines, f"{self.sequences} sequences, {self.frames} frames"))


def _averages_table(name: str, scores: Scores | BoundScores) -> tuple[str, ...]:
    return (
        f"{f'{name}, nats per frame':<24}{'all frames':>14}{'without first':>16}",
        f"{'  micro':<24}{scores.micro:>14.4f}{scores.micro_without_first:>16.4f}",
        f"{'  macro':<24}{scores.macro:>14.4f}{scores.macro_without_first:>16.4f}",
    )


def sequence_sums(output: SequenceOutput, lengths: Tensor) -> Tensor:
    """Of a time-major output: [B, 5] float64 of length, F, first F_t, KL_z and KL_w of each sequence."""
    if not isinstance(output, SequenceOutput):
        raise TypeError(f"output must be a SequenceOutput, got {type(output).__name__}")
    require_numbers("lengths", lengths)
    require_shape("lengths", lengths, "[B]", (output.reconstruction.shape[1],))
    reconstruction, kl_z, kl_w = (part.double() for part in (output.reconstruction, output.kl_z, output.kl_w))
    elbo = reconstruction - kl_z - kl_w  # [T, B]
    columns = (lengths.double(), elbo.sum(0), elbo[:1].sum(0), kl_z.sum(0), kl_w.sum(0))
    return torch.stack(columns, -1).detach()


def summarize(sums: Tensor) -> Scores:
    """Scores from the rows [N, 5] of `sequence_sums`; sequences without a frame are left out."""
    require_numbers("sums", sums)
    if sums.dim() != 2 or sums.shape[1] != 5:
        raise ValueError(f"sums must have shape [N, 5], got {list(sums.shape)}")
    sums = sums[sums[:, 0] > 0]
    length, total, first, kl_z, kl_w = sums.unbind(-1)
    frames = length.sum()
    return Scores(
        **_averages(length, total, first),
        kl_z=float(kl_z.sum() / frames),
        kl_w=float(kl_w.sum() / frames),
        frames=int(frames),
        sequences=len(sums),
    )


def _averages(length: Tensor, total: Tensor, first: Tensor) -> dict[str, float]:
    """Of sequences [N] that have a frame."""
    rest = length > 1
    return {
        "micro": float(total.sum() / length.sum()),
        "macro": float((total / length).mean()),
        "micro_without_first": float((total - first)[rest].sum() / (length - 1)[rest].sum()),
        "macro_without_first": float(((total - first)[rest] / (length - 1)[rest]).mean()),
    }


@torch.no_grad()
def evaluate(model: SequenceModel, loader: Iterable[SequenceBatch], *, samples: int = 1, seed: int = 0) -> Scores:
    """Scores `model` on time-major batches, whole sequences at a time.

    Args:
        model: on the device and in the dtype that it is to run, with batch_first or without; set to evaluation mode
            meanwhile.
        loader: of `SequenceBatch`es.
        samples: K draws of the latents; their ELBOs are averaged (not their likelihoods: the bound stays the
            ELBO, its variance falls).
        seed: of the draws, so that a score can be repeated.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        DataError: a batch holds what the model's likelihood does not take.
        TrainingError: the model has diverged: a state that scores go on from is not finite.
    """
    require_model(model)
    require_size("samples", samples, 1)
    require_seed("seed", seed)
    like = next(model.parameters())
    generator = torch.Generator(like.device).manual_seed(seed)
    rows = []
    with evaluating(model), time_major(model):
        for x, lengths, u, before in _batches(loader, model, like):
            draws = []
            for _ in range(samples):
                state = None if before is None else state_behind(model, before, draw_noise(model, before.x, generator))
                output = model(x, u, lengths, state=state, noise=draw_noise(model, x, generator))
                draws.append(sequence_sums(output, lengths))
            rows.append(torch.stack(draws).mean(0).cpu())
    return summarize(torch.cat(rows))


def state_behind(
    model: SequenceModel, before: SequenceBatch, noise: tuple[Tensor, ...], said: str = "the model has diverged"
) -> AnyState:
    """That of one draw, of a time-major model, behind the frames before the ones that are scored. Raises TrainingError,
    which begins with what is said, where it is not finite."""
    state: AnyState = model(before.x, before.u, before.lengths, noise=noise).state
    require_converged(state, said)
    return state


def _batches(loader: object, model: SequenceModel, like: Tensor) -> Iterator[SequenceBatch]:
    """Every batch on the device and in the dtype of `like`; without controls that the model does not take."""
    if not isinstance(loader, Iterable):
        raise TypeError(f"loader must be an iterable of SequenceBatches, got {type(loader).__name__}")
    empty = True
    for batch in loader:
        if not isinstance(batch, SequenceBatch):
            raise TypeError(f"loader must give SequenceBatches, got {type(batch).__name__}")
        empty = False
        yield _like(batch, like, model.control_size > 0)
    if empty:
        raise ValueError("loader must give one batch at least, got none")


def _like(batch: SequenceBatch, like: Tensor, controls: bool) -> SequenceBatch:
    u = batch.u.to(like) if batch.u is not None and controls else None
    before = None if batch.before is None else _like(batch.before, like, controls)
    return SequenceBatch(batch.x.to(like), batch.lengths.to(like.device), u, before)


def evaluate_bound(
    model: SequenceModel,
    loader: Iterable[SequenceBatch],
    *,
    bound: str = "iwae",
    particles: int = 100,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
) -> BoundScores:
    """Scores `model` by an importance-weighted bound on time-major batches, whole sequences at a time.

    Args:
        model: on the device and in the dtype that it is to run; set to evaluation mode meanwhile.
        loader: of `SequenceBatch`es; sequence n of it draws from the stream (seed, n), whatever its batches.
        bound: "iwae" or "fivo".
        particles: K.
        memory: bytes, as in `vssn.inference.importance.sequence_bounds`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        DataError: a batch holds what the model's likelihood does not take.
        TrainingError: the model has diverged: a state that scores go on from is not finite.
        MemoryLimitError: `memory` does not suffice for one sequence.
    """
    check_bound(model, bound, particles, seed, memory)
    like = next(model.parameters())
    parts, count = [], 0
    generator = torch.Generator(like.device).manual_seed(seed)
    with torch.no_grad(), evaluating(model), time_major(model):
        for x, lengths, u, before in _batches(loader, model, like):
            state = None if before is None else state_behind(model, before, draw_noise(model, before.x, generator))
            result = sequence_bounds(
                model,
                x,
                u,
                lengths,
                bound=bound,
                particles=particles,
                seed=seed,
                first_index=count,
                memory=memory,
                state=state,
            )
            parts.append(torch.stack((lengths.double(), *(part.double() for part in result)), -1).cpu())
            count += len(lengths)
    rows = torch.cat(parts)
    length, total, first, resamplings = rows[rows[:, 0] > 0].unbind(-1)
    resampled = float(resamplings.sum())
    return BoundScores(
        bound=bound,
        particles=particles,
        **_averages(length, total, first),
        frames_per_resampling=float(length.sum()) / resampled if resampled else None,
        frames=int(length.sum()),
        sequences=len(length),
    )


def draw_noise(model: SequenceModel, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """(eps_w [T, B, W], eps_z [T, B, Z]) standard normal for x [T, B, X]; with eps_0 [B, S] behind them where the model
    infers what is before the first frame."""
    require_model(model)
    if require_tensor("x", x).dim() != 3:
        raise ValueError(f"x must have shape [T, B, X], got {list(x.shape)}")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != x.device.type:
        raise ValueError(f"generator must be on {x.device.type} as x is, got {generator.device.type}")
    shapes = model.noise_shapes(*x.shape[:2])
    return tuple(torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device) for shape in shapes)
