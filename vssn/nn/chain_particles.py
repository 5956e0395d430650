"""Weighted particles of VRNN, RSSM and DVBF, whose state takes the sample of the step before: z and h are drawn
together, frame by frame, and nothing is run along the frames before. Particle k of sequence b is row k B + b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vssn.nn.particles import Frame
from vssn.nn.states import State


class ChainParticles:
    """Of `vssn.nn.particles.TrainedHooks` what all share: [z, h] stands for z; d and a are empty.

    Args:
        h_0: [B, H] before the first frame.
        z_0: [B, Z].
    """

    def __init__(self, h_0: Tensor, z_0: Tensor) -> None:
        self.h_0, self.z_0, self.batch = h_0, z_0, len(h_0)

    def kinds(self, particles: int) -> int:
        return 1

    def edges(self, kinds: int, eps_0: Tensor | None = None) -> tuple[Tensor, ...]:
        nothing = self.h_0[:, :0]
        return nothing, nothing

    def first_z(self, particles: int) -> Tensor:
        """[k B, Z+H]"""
        return torch.cat((self.z_0, self.h_0), -1).repeat(particles, 1)

    def split(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., Z] and h [..., H] of [..., Z+H]."""
        z, h = drawn.split((self.z_0.shape[1], self.h_0.shape[1]), -1)
        return z, h

    def states(
        self, eps_w: Tensor, start: int, stop: int, d_before: Tensor, a_after: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        nothing = eps_w.new_zeros(stop - start, self.batch, 0)
        return eps_w.new_zeros(eps_w.shape[:3]), nothing, d_before, None, d_before

    def behind(self, d: Tensor, z: Tensor, x_last: Tensor) -> State:
        z, h = self.split(z)
        return State(h, z, x_last)

    def of_particles(self, rows: Tensor, like: Tensor) -> Tensor:
        """[..., B, ·] to [..., k B, ·], of as many rows as `like` [..., k B, ·] has."""
        return rows.repeat(*(1,) * (rows.dim() - 2), like.shape[-2] // max(self.batch, 1), 1)


class TrainedChainParticles(ChainParticles, ABC):
    """With the densities that nasmc trains on."""

    def densities(self, eps_w: Tensor, eps_0: Tensor | None, frames: list[Frame]) -> tuple[Tensor, Tensor, Tensor]:
        h, hs = self.h_0.repeat(eps_w.shape[1], 1), []
        for t, frame in enumerate(frames):
            z = self.split(self.first_z(eps_w.shape[1]) if t == 0 else frame.z_before)[0]  # the first may be learned
            h = self.step(t, h.index_select(0, frame.before), z)
            hs.append(h)
        h, z = torch.stack(hs), self.split(torch.stack([frame.z for frame in frames]))[0]
        return self.log_densities(z, h), torch.cat((z, h), -1), h[..., :0]

    @abstractmethod
    def step(self, t: int, h: Tensor, z: Tensor) -> Tensor:
        """h_t [k B, H] from those before, h [k B, H] and z [k B, Z]."""

    @abstractmethod
    def log_densities(self, z: Tensor, h: Tensor) -> Tensor:
        """log p + log q [T, k B] of z [T, k B, Z] given h [T, k B, H], which is a constant to q."""
