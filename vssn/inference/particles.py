"""The particles of a few sequences: their noise, their weights, and the bounds that the weights make.

Rows are particle-major: row k B + b. What a particle's states are is the model's (`SequenceModel.particles`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.nn.interface import EncodedBatch, SequenceModel
from vssn.utils.checks import require_tensor
from vssn.utils.random import generator

PART = 64  # frames; a multiple of 16, so that a draw of a part does not depend on the library's vector width
INITIAL = 2**32 - 1  # stands for what is before the first frame where other streams have the number of their part


class Plan(NamedTuple):
    """What is held in memory at once."""

    sequences: int
    particles: int
    steps: int


class Particles:
    """A group of particles for every sequence of a batch.

    Args:
        given: what the model has prepared, time-major.
        lengths: [B] int64.
        keys: (seed, number) of each sequence, for its random numbers.
        plan: how many particles and frames to hold at once.
    """

    def __init__(
        self, model: SequenceModel, given: EncodedBatch, lengths: Tensor, keys: list[tuple[int, int]], plan: Plan
    ) -> None:
        self.model, self.given, self.lengths, self.keys, self.plan = model, given, lengths, keys, plan
        self.steps, self.batch = given.x.shape[:2]
        self.valid = torch.arange(self.steps, device=given.x.device)[:, None] < lengths  # [T, B]
        self.hooks = model.particles(given, lengths)

    def _edges(self, group: range) -> tuple[Tensor, ...]:
        """What the model's `edges` says, of what it infers before the first frame with noise for every particle."""
        kinds, size, like = self.hooks.kinds(len(group)), self.model.initial_size, self.given.x
        if not size:
            return self.hooks.edges(kinds)
        draws = [
            torch.randn(size, generator=generator(*key, 1 + particle, INITIAL), dtype=like.dtype)
            for particle in group
            for key in self.keys
        ]
        return self.hooks.edges(kinds, torch.stack(draws).view(len(group), self.batch, size).to(like.device))

    def _noise(self, group: range, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(eps_w [S, k, B, W], eps_z [S, k, B, Z]) of the frames start..stop-1; start is a multiple of PART."""
        (w, z), like = self.model.noise_sizes, self.given.x
        eps = torch.zeros(stop - start, len(group), self.batch, w + z, dtype=like.dtype)
        lengths = self.lengths.tolist()
        for column, key in enumerate(self.keys):
            for begin in range(start, min(stop, lengths[column]), PART):
                end = min(begin + PART, stop, lengths[column])
                for row, particle in enumerate(group):
                    draws = torch.randn(
                        PART, w + z, generator=generator(*key, 1 + particle, begin // PART), dtype=like.dtype
                    )
                    eps[begin - start : end - start, row, column] = draws[: end - begin]
        eps_w, eps_z = eps.to(like.device).split((w, z), -1)
        return eps_w, eps_z

    def _weights(
        self,
        frames: slice,
        d: Tensor,
        hidden_inputs: tuple[Tensor, ...] | None,
        z_before: Tensor,
        eps_z: Tensor,
        log_ratio: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """alpha [S, k, B] of a stretch of frames, 0 at padding, and its last z [k B, Z].

        Args:
            d: [S, k B, D].
            hidden_inputs: the model's, each [S, k B, ·]; None without a latent.
            z_before: [k B, Z].
            eps_z: [S, k, B, Z].
            log_ratio: log p(w)/q(w) [S, k, B].
        """
        given, shape = self.given, eps_z.shape[:3]
        z, log_ratio_z = self.hooks.latents(hidden_inputs, z_before, eps_z.flatten(1, 2))
        alpha = log_ratio if log_ratio_z is None else log_ratio + log_ratio_z.view(shape)
        parameters = self.model.decode(z, d)
        x = given.x[frames].repeat(1, shape[1], 1)
        observed = None if given.observed is None else given.observed[frames].repeat(1, shape[1], 1)
        alpha = alpha + self.model.likelihood.log_prob(parameters, x, observed).view(shape)
        return torch.where(self.valid[frames, None], alpha, 0.0), z[-1]

    # The bounds

    def weighted(self, particles: int, bound: str) -> tuple[Tensor, ...]:
        """elbo or iwae, as the fields of SequenceBounds."""
        totals, firsts = [], []
        for begin in range(0, particles, self.plan.particles):
            group = range(begin, min(begin + self.plan.particles, particles))
            total = self.given.x.new_zeros(len(group), self.batch, dtype=torch.float64)
            first = total
            z = self.hooks.first_z(len(group))
            for start, log_ratio, d, hidden_inputs, eps_z in self._parts(group):
                stop = start + len(eps_z)
                d, hidden_inputs = self._expand(d, len(group)), self._expand_hidden_inputs(hidden_inputs, len(group))
                alpha, z = self._weights(slice(start, stop), d, hidden_inputs, z, eps_z, log_ratio)
                total = total + alpha.sum(0, dtype=torch.float64)
                first = alpha[0].double() if start == 0 else first
            totals.append(total)
            firsts.append(first)
        mean = _log_mean if bound == "iwae" else _mean
        return mean(torch.cat(totals)), mean(torch.cat(firsts)), torch.zeros_like(self.lengths)

    def fivo(self, particles: int, resampling: str, ess_threshold: float) -> tuple[Tensor, ...]:
        """As the fields of SequenceBounds."""
        like = self.given.x
        ranks = torch.arange(particles, device=like.device)[:, None].expand(particles, self.batch)
        columns = torch.arange(self.batch, device=like.device)
        even = torch.full((particles, self.batch), -math.log(particles), dtype=torch.float64, device=like.device)
        log_weights, path, z = even, ranks, self.hooks.first_z(particles)  # [K, B], [K, B] whose w path, [K B, Z]
        total = like.new_zeros(self.batch, dtype=torch.float64)
        first, count = total, torch.zeros_like(self.lengths)
        uniforms = self._uniforms(particles if resampling == "multinomial" else 1)
        for start, log_ratios, ds, hidden_inputs, eps_z in self._parts(range(particles)):
            for step in range(len(eps_z)):
                t = start + step
                rows = (
                    path * self.batch + columns if self.hooks.kinds(particles) > 1 else columns.expand_as(path)
                ).flatten()
                here = slice(step, step + 1)
                alpha, z = self._weights(
                    slice(t, t + 1),
                    ds[here].index_select(1, rows),
                    None if hidden_inputs is None else _pick(hidden_inputs, here, rows),
                    z,
                    eps_z[here],
                    log_ratios[here].gather(1, path[None]),
                )
                log_weights = log_weights + alpha[0].double()
                increment = torch.logsumexp(log_weights, 0)  # [B]
                total = total + increment
                first = increment if t == 0 else first
                log_weights = log_weights - increment
                size = torch.exp(-torch.logsumexp(2 * log_weights, 0))
                chosen = (size < ess_threshold * particles) & (t + 1 < self.lengths)
                if bool(chosen.any()):
                    drawn = resample(log_weights.exp(), uniforms[t])
                    ancestors = torch.where(chosen, drawn, ranks)
                    path = path.gather(0, ancestors)
                    z = z[(ancestors * self.batch + columns).flatten()]
                    log_weights = torch.where(chosen, even, log_weights)
                    count = count + chosen
        return total, first, count

    def _parts(self, group: range) -> Iterator[tuple[int, Tensor, Tensor, tuple[Tensor, ...] | None, Tensor]]:
        """For every part of the frames in turn: its start, log p(w)/q(w), at the first frame with that of what is
        inferred before it, d, the hidden inputs, eps_z."""
        steps = self.plan.steps
        starts = list(range(0, self.steps, steps))
        d, a, *of_start = self._edges(group)
        before, after = [d], [a]  # the states at the edges of the parts
        if len(starts) > 1:
            for start in starts[:-1]:
                eps_w, _ = self._noise(group, start, start + steps)
                before.append(self.hooks.states(eps_w, start, start + steps, before[-1], None)[2])
            for number in reversed(range(1, len(starts))):
                start, stop = starts[number], min(starts[number] + steps, self.steps)
                eps_w, _ = self._noise(group, start, stop)
                after.append(self.hooks.states(eps_w, start, stop, before[number], after[-1])[4])
        for number, start in enumerate(starts):
            stop = min(start + steps, self.steps)
            eps_w, eps_z = self._noise(group, start, stop)
            log_ratio, d, _, here, _ = self.hooks.states(eps_w, start, stop, before[number], after[-1 - number])
            if start == 0 and of_start:
                log_ratio = torch.cat((log_ratio[:1] + of_start[0], log_ratio[1:]))
            yield start, log_ratio, d, self.hooks.hidden_inputs(d, here, start, stop), eps_z

    def _expand(self, rows: Tensor, particles: int) -> Tensor:
        """[S, kinds B, ·] to [S, k B, ·]."""
        return rows.repeat(1, particles * self.batch // rows.shape[1], 1)

    def _expand_hidden_inputs(
        self, hidden_inputs: tuple[Tensor, ...] | None, particles: int
    ) -> tuple[Tensor, ...] | None:
        return None if hidden_inputs is None else tuple(self._expand(part, particles) for part in hidden_inputs)

    def _uniforms(self, count: int) -> Tensor:
        """[T, count, B] for resampling, a stream for each sequence."""
        uniforms = torch.zeros(self.steps, count, self.batch, dtype=torch.float64)
        for column, (key, length) in enumerate(zip(self.keys, self.lengths.tolist(), strict=True)):
            uniforms[:length, :, column] = torch.rand(
                length, count, generator=generator(*key, 0, 0), dtype=torch.float64
            )
        return uniforms.to(self.lengths.device)


def resample(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Indices [K, B] of particles, each expected K times its weight often.

    Args:
        weights: [K, B], each column's sum 1.
        uniforms: [K, B] in [0, 1): independent draws, multinomial; [1, B]: systematic, at (rank + uniform) / K.
    """
    for name, tensor in (("weights", weights), ("uniforms", uniforms)):
        if require_tensor(name, tensor).dim() != 2:
            raise ValueError(f"{name} must have shape [K, B], got {list(tensor.shape)}")
    count = len(weights)
    if len(uniforms) not in (1, count) or uniforms.shape[1] != weights.shape[1]:
        raise ValueError(
            f"uniforms must have shape [K, B] = {list(weights.shape)} or [1, B], got {list(uniforms.shape)}"
        )
    points = uniforms
    if len(uniforms) == 1:
        points = (torch.arange(count, device=weights.device, dtype=weights.dtype)[:, None] + uniforms) / count
    ladder = weights.cumsum(0)
    ladder = ladder / ladder[-1]
    drawn = torch.searchsorted(ladder.T.contiguous(), points.T.contiguous(), right=True)
    return drawn.clamp(max=count - 1).T


def _pick(hidden_inputs: tuple[Tensor, ...], here: slice, rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(part[here].index_select(1, rows) for part in hidden_inputs)


def _mean(values: Tensor) -> Tensor:
    return values.mean(0)


def _log_mean(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - math.log(len(values))
