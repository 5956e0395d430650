"""Weighted particles of an RSSM."""

from __future__ import annotations

import torch
from torch import Tensor

from vssn.nn.chain_particles import TrainedChainParticles
from vssn.nn.interface import EncodedBatch
from vssn.nn.rssm_layer import RSSMLayer


class RSSMParticles(TrainedChainParticles):
    """`vssn.nn.particles.TrainedHooks` of a layer, for the sequences given."""

    def __init__(self, layer: RSSMLayer, given: EncodedBatch) -> None:
        steps, batch = given.x.shape[:2]
        start = given.start
        super().__init__(*(layer.start(batch, given.x) if start is None else (start.d, start.z)))
        self.layer = layer
        self.context = layer.frame(given.embedded, (steps, batch))
        self.embed_context = layer.action(given.controls[0] if given.controls else None, (steps, batch))

    def hidden_inputs(self, d: Tensor, a: Tensor | None, start: int, stop: int) -> tuple[Tensor, ...]:
        """What actions and frames add, [S, B, E] and [S, B, M]."""
        return self.embed_context[start:stop], self.context[start:stop]

    def latents(
        self, hidden_inputs: tuple[Tensor, ...] | None, z_before: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """[z, h] [S, k B, Z+H] and log p(z)/q(z) [S, k B]."""
        assert hidden_inputs is not None
        layer, (embed_context, context) = self.layer, hidden_inputs
        z, h = self.split(z_before)
        gates = layer.gates_bias.expand(*eps.shape[:2], -1)
        h, z, *posterior = layer.chain(gates, embed_context, context, h, z, eps)
        return torch.cat((z, h), -1), layer.latent.log_ratio(z, tuple(posterior), layer.prior(h))

    def step(self, t: int, h: Tensor, z: Tensor) -> Tensor:
        return self.layer.chain.step(self.layer.gates_bias, self.of_particles(self.embed_context[t], h), h, z)

    def log_densities(self, z: Tensor, h: Tensor) -> Tensor:
        layer = self.layer
        q = layer.chain.posterior(self.of_particles(self.context, h), h.detach())
        return layer.latent.log_density(z, q) + layer.latent.log_density(z, layer.prior(h))


def floats_of_particles(layer: RSSMLayer) -> tuple[int, int, int, int]:
    """Numbers that are held for a frame of a sequence, for a frame of a particle up to its hidden inputs and from there
    on, and for a particle between two parts."""
    h, z, m, e = layer.hidden_size, layer.latent_size, layer.mlp_size, layer.joint_size
    return 4 * layer.embed_size + m + e, z, 3 * h + 10 * z + 4 * m + 2 * e, 0
