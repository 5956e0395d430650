"""The particles of a few sequences: their noise, and the bounds that their weights make, within a plan of memory.

Rows are particle-major: row k B + b.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vssn.nn.interface import EncodedBatch, SequenceModel
from vssn.nn.particles import Part, WeightedParticles, resample
from vssn.utils.random import generator

__all__ = ["INITIAL", "PART", "Particles", "Plan", "resample"]

PART = 64  # frames; a multiple of 16, so that a draw of a part does not depend on the library's vector width
INITIAL = 2**32 - 1  # stands for what is before the first frame where other streams have the number of their part


class Plan(NamedTuple):
    """What is held in memory at once."""

    sequences: int
    particles: int
    steps: int


class Particles(WeightedParticles):
    """A group of particles for every sequence of a batch, with random numbers of their own.

    Args:
        given: what the model has prepared, time-major.
        lengths: [B] int64.
        keys: (seed, number) of each sequence, for its random numbers.
        plan: how many particles and frames to hold at once.
    """

    def __init__(
        self, model: SequenceModel, given: EncodedBatch, lengths: Tensor, keys: list[tuple[int, int]], plan: Plan
    ) -> None:
        super().__init__(model, given, lengths)
        self.keys, self.plan = keys, plan

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
                alpha, drawn = self.weights(slice(start, stop), d, hidden_inputs, z, eps_z, log_ratio)
                z = drawn[-1]
                total = total + alpha.sum(0, dtype=torch.float64)
                first = alpha[0].double() if start == 0 else first
            totals.append(total)
            firsts.append(first)
        mean = _log_mean if bound == "iwae" else _mean
        return mean(torch.cat(totals)), mean(torch.cat(firsts)), torch.zeros_like(self.lengths)

    def fivo(self, particles: int, resampling: str, ess_threshold: float) -> tuple[Tensor, ...]:
        """As the fields of SequenceBounds."""
        uniforms = self._uniforms(particles if resampling == "multinomial" else 1)
        found = self.run_filter(particles, self._parts(range(particles)), uniforms, ess_threshold)
        return found.total, found.first, found.resamplings

    def _parts(self, group: range) -> Iterator[Part]:
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


def _mean(values: Tensor) -> Tensor:
    return values.mean(0)


def _log_mean(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - math.log(len(values))
