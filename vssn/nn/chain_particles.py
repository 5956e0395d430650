"""Weighted particles of VRNN and RSSM, whose state takes the sample of the step before: z and h are drawn together,
frame by frame, and nothing is run along the frames before. Particle k of sequence b is row k B + b.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ChainParticles:
    """Of `vssn.nn.interface.ParticleHooks` what both share: [z, h] stands for z; d and a are empty.

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
