"""Weighted particles of a VRNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn.nn.blocks import gaussian_log_density
from vssn.nn.chain_particles import TrainedChainParticles
from vssn.nn.interface import EncodedBatch
from vssn.nn.log_ratio import log_ratio


class VRNNParticles(TrainedChainParticles):
    """`vssn.nn.particles.TrainedHooks` of a vssn.VRNN, for a batch that it has prepared."""

    def __init__(self, model: Any, given: EncodedBatch) -> None:
        start = given.start
        super().__init__(*(model.initial(given.x.shape[1], given.x) if start is None else (start.d, start.z)))
        self.model, self.controls = model, given.controls
        self.gates, self.context = model.inputs_of_chain(given)

    def hidden_inputs(self, d: Tensor, a: Tensor | None, start: int, stop: int) -> tuple[Tensor, ...]:
        """gates_x [S, B, 3H], context [S, B, M] and the external control [S, B, U], if there is one."""
        return tuple(part[start:stop] for part in (self.gates, self.context, *self.controls[2:]))

    def latents(
        self, hidden_inputs: tuple[Tensor, ...] | None, z_before: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """[z, h] [S, k B, Z+H] and log p(z)/q(z) [S, k B], from those before, [k B, Z+H], and eps [S, k B, Z]."""
        assert hidden_inputs is not None
        model, (gates, context), u = self.model, hidden_inputs[:2], hidden_inputs[2:]
        z_0, h_0 = self.split(z_before)
        h, z, _, logvar = model.chain(gates, model.bias_embed.expand(*eps.shape[:2], -1), context, h_0, z_0, eps)
        return torch.cat((z, h), -1), log_ratio(z, eps, logvar, *model.prior_of(h, u))

    def step(self, t: int, h: Tensor, z: Tensor) -> Tensor:
        model = self.model
        after: Tensor = model.chain.step(self.of_particles(self.gates[t], h), model.bias_embed, h, z)
        return after

    def log_densities(self, z: Tensor, h: Tensor) -> Tensor:
        posterior = self.model.chain.posterior(self.of_particles(self.context, h), h.detach())
        total = gaussian_log_density(z, *posterior).sum(-1)
        prior_mu, prior_logvar = self.model.prior_of(h, tuple(self.of_particles(u, h) for u in self.controls[2:]))
        return total if prior_mu is None else total + gaussian_log_density(z, prior_mu, prior_logvar).sum(-1)
