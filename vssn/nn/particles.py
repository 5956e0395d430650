"""Weighted particles of a batch, frame by frame: their weights, resampling, and the filtering bound that these make.

Rows are particle-major: row k B + b. What a particle's states are is the model's (`SequenceModel.particles`). Nothing
here stops gradients but resampling, whose choice of ancestors has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vssn.nn.interface import EncodedBatch, ParticleHooks, SequenceModel
from vssn.nn.states import AnyState
from vssn.utils.checks import require_numbers
from vssn.utils.named_tuples import with_parts

Part = tuple[int, Tensor, Tensor, tuple[Tensor, ...] | None, Tensor]
# its first frame, log p(w)/q(w) [S, K, B], d [S, kinds B, D], the hidden inputs, eps_z [S, K, B, Z]


class Frame(NamedTuple):
    """What a filter did at one frame."""

    paths: Tensor  # [K B] rows of d and a, the particles' own
    before: Tensor  # [K B] rows of the particles of the frame before that these go on from
    z_before: Tensor  # [K B, Z]
    z: Tensor  # [K B, Z]
    log_weights: Tensor  # [K, B] normalised, of the frame itself: those that a resampling behind it takes


class ParticleNoise(NamedTuple):
    """For a call of a model whose objective has K particles, time-major whatever batch_first says."""

    latents: tuple[Tensor, ...]  # standard normal: eps_w [K, T, B, W], eps_z [K, T, B, Z], where it is inferred eps_0
    uniform: Tensor  # [T, B] in [0, 1): of resampling; the last of a sequence chooses the state that is handed on

    @classmethod
    def draw(
        cls, model: SequenceModel, x: Tensor, particles: int, source: torch.Generator | None = None
    ) -> ParticleNoise:
        """For x [T, B, X], of `source` or PyTorch's own generator."""
        shapes = model.noise_shapes(*x.shape[:2])
        latents = tuple(x.new_empty(particles, *shape).normal_(generator=source) for shape in shapes)
        uniform = torch.empty(x.shape[:2], dtype=torch.float64, device=x.device).uniform_(generator=source)
        return cls(latents, uniform)

    def of_particle(self, number: int) -> tuple[Tensor, ...]:
        """The noise of a call with one draw."""
        return tuple(part[number] for part in self.latents)

    def with_first(self, noise: tuple[Tensor, ...]) -> ParticleNoise:
        """With that noise of one draw as the first particle's."""
        latents = tuple(torch.cat((own[None], part[1:])) for own, part in zip(noise, self.latents, strict=True))
        return with_parts(self, latents=latents)

    def part(self, steps: int, rows: slice) -> ParticleNoise:
        """Of the first `steps` frames of some sequences."""
        latents = tuple(part[:, :steps, rows] if part.dim() == 4 else part[:, rows] for part in self.latents)
        return ParticleNoise(latents, self.uniform[:steps, rows])


class TrainedHooks(ParticleHooks, Protocol):
    """What training on particles asks of a model's hooks beyond that."""

    def behind(self, d: Tensor, z: Tensor, x_last: Tensor) -> AnyState:
        """The state behind particles, one a sequence: of the d [B, ·] that `states` returns as the last, z [B, ·] and
        the last frames [B, F]."""
        ...

    def densities(self, eps_w: Tensor, eps_0: Tensor | None, frames: list[Frame]) -> tuple[Tensor, Tensor, Tensor]:
        """Of particles that stand as they were drawn: log p + log q of their latents [T, k B], and z and d [T, k B, ·]
        for `SequenceModel.decode_particles`.

        What reaches the generative model through d gets the gradient of log p alone; q takes d, and a mean that it
        shares with p, as constants. Constants that no weight enters may be left out.
        """
        ...


class Filtered(NamedTuple):
    total: Tensor  # [B] the bound, float64
    first: Tensor  # [B] its first increment
    resamplings: Tensor  # [B] int64
    log_weights: Tensor  # [K, B] normalised, behind the last frame of each sequence
    paths: Tensor  # [K, B] whose d and a each particle has there
    z: Tensor  # [K B, Z] there


class WeightedParticles:
    """Particles of every sequence of a batch.

    Args:
        given: what the model has prepared, time-major.
        lengths: [B] int64.
    """

    def __init__(self, model: SequenceModel, given: EncodedBatch, lengths: Tensor) -> None:
        self.model, self.given, self.lengths = model, given, lengths
        self.steps, self.batch = given.x.shape[:2]
        self.valid = torch.arange(self.steps, device=given.x.device)[:, None] < lengths  # [T, B]
        self.hooks: ParticleHooks = model.particles(given, lengths)

    def weights(
        self,
        frames: slice,
        d: Tensor,
        hidden_inputs: tuple[Tensor, ...] | None,
        z_before: Tensor,
        eps_z: Tensor,
        log_ratio: Tensor,
        ratio_weight: float | Tensor = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """alpha [S, k, B] of a stretch of frames, 0 at padding, and z [S, k B, Z].

        Args:
            d: [S, k B, D].
            hidden_inputs: the model's, each [S, k B, ·]; None without a latent.
            z_before: [k B, Z].
            eps_z: [S, k, B, Z].
            log_ratio: log p(w)/q(w) [S, k, B].
            ratio_weight: factor of log p/q, which anneals a bound.
        """
        shape = eps_z.shape[:3]
        z, log_ratio_z = self.hooks.latents(hidden_inputs, z_before, eps_z.flatten(1, 2))
        ratio = log_ratio if log_ratio_z is None else log_ratio + log_ratio_z.view(shape)
        if isinstance(ratio_weight, Tensor) or ratio_weight != 1:
            ratio = ratio * ratio_weight
        alpha = ratio + self.log_prob(frames, z, d).view(shape)
        return torch.where(self.valid[frames, None], alpha, 0.0), z

    def log_prob(self, frames: slice, z: Tensor, d: Tensor) -> Tensor:
        """log p(x_t | z_t, d_t) [S, k B] of a stretch of frames; z and d [S, k B, ·]."""
        given, particles = self.given, z.shape[1] // self.batch if self.batch else 0
        parameters = self.model.decode_particles(z, d)
        x = given.x[frames].repeat(1, particles, 1)
        observed = None if given.observed is None else given.observed[frames].repeat(1, particles, 1)
        log_prob: Tensor = self.model.likelihood.log_prob(parameters, x, observed)
        return log_prob

    def run_filter(
        self,
        particles: int,
        parts: Iterable[Part],
        uniforms: Tensor,
        ess_threshold: float,
        ratio_weight: float | Tensor = 1.0,
        trace: list[Frame] | None = None,
    ) -> Filtered:
        """fivo: sum_t log sum_k W_{t-1}^k exp alpha_t^k.

        Args:
            particles: K.
            parts: of the frames, in turn.
            uniforms: [T, 1, B] (systematic) or [T, K, B] (multinomial resampling).
            ess_threshold: resample where the effective sample size is below this share of K.
            trace: every frame is added to it.
        """
        like = self.given.x
        ranks = torch.arange(particles, device=like.device)[:, None].expand(particles, self.batch)
        columns = torch.arange(self.batch, device=like.device)
        even = torch.full((particles, self.batch), -math.log(particles), dtype=torch.float64, device=like.device)
        log_weights, path, z = even, ranks, self.hooks.first_z(particles)  # [K, B], [K, B] whose w path, [K B, Z]
        total = like.new_zeros(self.batch, dtype=torch.float64)
        first, count = total, torch.zeros_like(self.lengths)
        own_rows = before = (ranks * self.batch + columns).flatten()
        several = self.hooks.kinds(particles) > 1
        for start, log_ratios, ds, hidden_inputs, eps_z in parts:
            # One frame at a time by `split`, whose gradients are gathered once: those of a slice fill all frames.
            inputs = None if hidden_inputs is None else tuple(part.split(1) for part in hidden_inputs)
            for step, (log_ratio, d, eps) in enumerate(
                zip(log_ratios.split(1), ds.split(1), eps_z.split(1), strict=True)
            ):
                t = start + step
                rows = (path * self.batch + columns if several else columns.expand_as(path)).flatten()
                alpha, drawn = self.weights(
                    slice(t, t + 1),
                    d.index_select(1, rows),
                    None if inputs is None else tuple(part[step].index_select(1, rows) for part in inputs),
                    z,
                    eps,
                    log_ratio.gather(1, path[None]),
                    ratio_weight,
                )
                valid = self.valid[t].repeat(particles)[:, None]
                z_before, z = z, torch.where(valid, drawn[0], z)
                log_weights = log_weights + alpha[0].double()
                increment = torch.logsumexp(log_weights, 0)  # [B]
                total = total + increment
                first = increment if t == 0 else first
                log_weights = log_weights - increment
                if trace is not None:
                    trace.append(Frame(rows, before, z_before, z, log_weights))
                before = own_rows
                size = torch.exp(-torch.logsumexp(2 * log_weights, 0))
                chosen = (size < ess_threshold * particles) & (t + 1 < self.lengths)
                if bool(chosen.any()):
                    drawn_anew = resample(log_weights.detach().exp(), uniforms[t])
                    ancestors = torch.where(chosen, drawn_anew, ranks)
                    path = path.gather(0, ancestors)
                    before = (ancestors * self.batch + columns).flatten()
                    z = z[before]
                    log_weights = torch.where(chosen, even, log_weights)
                    count = count + chosen
        return Filtered(total, first, count, log_weights, path, z)


def resample(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Indices [K, B] of particles, each expected K times its weight often.

    Args:
        weights: [K, B], each column's sum 1.
        uniforms: [K, B] in [0, 1): independent draws, multinomial; [1, B]: systematic, at (rank + uniform) / K.
    """
    for name, tensor in (("weights", weights), ("uniforms", uniforms)):
        if require_numbers(name, tensor, weights).dim() != 2:
            raise ValueError(f"{name} must have shape [K, B], got {list(tensor.shape)}")
    for name, tensor in (("weights", weights), ("uniforms", uniforms)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    count = len(weights)
    if len(uniforms) not in (1, count) or uniforms.shape[1] != weights.shape[1]:
        raise ValueError(
            f"uniforms must have shape [K, B] = {list(weights.shape)} or [1, B], got {list(uniforms.shape)}"
        )
    points = uniforms.to(weights.dtype)
    if len(uniforms) == 1:
        points = (torch.arange(count, device=weights.device, dtype=weights.dtype)[:, None] + points) / count
    return search(weights, points)


def search(weights: Tensor, points: Tensor) -> Tensor:
    """Indices [N, B] of the particles that the points [N, B] in [0, 1) hit, each as wide as its weight [K, B]."""
    ladder = weights.cumsum(0)
    ladder = ladder / ladder[-1]
    drawn = torch.searchsorted(ladder.T.contiguous(), points.T.contiguous(), right=True)
    return drawn.clamp(max=len(weights) - 1).T
