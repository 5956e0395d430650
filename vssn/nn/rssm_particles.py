"""Weighted particles of an RSSM: h and z are drawn together, frame by frame; nothing is run along the frames before.

Particle k of sequence b is row k B + b. What stands for z in `ParticleHooks` is [h, z]; d and a are empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vssn.nn.interface import EncodedBatch
from vssn.nn.rssm_layer import RSSMLayer


class RSSMParticles:
    """`vssn.nn.interface.ParticleHooks` of a layer, for the sequences given."""

    def __init__(self, layer: RSSMLayer, given: EncodedBatch) -> None:
        self.layer, (steps, self.batch) = layer, given.x.shape[:2]
        action = given.controls[0] if given.controls else None
        self.context = layer.frame(given.embedded, (steps, self.batch))
        self.embed_context = layer.action(action, (steps, self.batch))
        self.start: tuple[Tensor, ...] = layer.start(self.batch, given.x) if given.start is None else given.start[:2]

    def kinds(self, particles: int) -> int:
        return 1

    def edges(self, kinds: int, eps_0: Tensor | None = None) -> tuple[Tensor, ...]:
        nothing = self.context.new_empty(kinds * self.batch, 0)
        return nothing, nothing

    def first_z(self, particles: int) -> Tensor:
        """[k B, H+Z]"""
        return torch.cat(self.start, -1).repeat(particles, 1)

    def states(
        self, eps_w: Tensor, start: int, stop: int, d_before: Tensor, a_after: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        return eps_w.sum(-1), d_before.expand(stop - start, -1, -1), d_before, a_after, d_before

    def hidden_inputs(self, d: Tensor, a: Tensor | None, start: int, stop: int) -> tuple[Tensor, ...]:
        """What actions and frames add, [S, B, E] and [S, B, M]."""
        return self.embed_context[start:stop], self.context[start:stop]

    def latents(
        self, hidden_inputs: tuple[Tensor, ...] | None, z_before: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """[h, z] [S, k B, H+Z] and log p(z)/q(z) [S, k B]."""
        assert hidden_inputs is not None
        layer, (embed_context, context) = self.layer, hidden_inputs
        h, z = z_before.split((layer.hidden_size, layer.latent_size), -1)
        gates = layer.gates_bias.expand(*eps.shape[:2], -1)
        h, z, *posterior = layer.chain(gates, embed_context, context, h, z, eps)
        return torch.cat((h, z), -1), layer.latent.log_ratio(z, tuple(posterior), layer.prior(h))


def floats_of_particles(layer: RSSMLayer) -> tuple[int, int, int, int]:
    """Numbers that are held for a frame of a sequence, for a frame of a particle up to its hidden inputs and from there
    on, and for a particle between two parts."""
    h, z, m, e = layer.hidden_size, layer.latent_size, layer.mlp_size, layer.joint_size
    return 4 * layer.embed_size + m + e, z, 3 * h + 10 * z + 4 * m + 2 * e, 0
