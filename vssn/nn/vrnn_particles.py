"""Weighted particles of a VRNN: its state takes the sample of the step before, so both are drawn frame by frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn.nn.interface import EncodedBatch


def log_ratio(z: Tensor, eps: Tensor, logvar: Tensor, prior: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """log p(z)/q(z) [T, B] of z drawn with eps from a q of that log-variance, each [T, B, Z]; the prior's mean and
    log-variance, None for N(0, I)."""
    terms, (mu, prior_logvar) = z.square(), prior
    if mu is not None and prior_logvar is not None:
        terms = (z - mu).square() * torch.exp(-prior_logvar) + prior_logvar
    return (eps.square() + logvar - terms).sum(-1) / 2


class VRNNParticles:
    """`vssn.nn.interface.ParticleHooks`: nothing is run along the frames in whole, z and then h are what is drawn.

    Args:
        model: a vssn.VRNN.
        given: a batch that it has prepared, of sequences that start anew.
    """

    def __init__(self, model: Any, given: EncodedBatch) -> None:
        self.model, self.controls, self.batch = model, given.controls, given.x.shape[1]
        self.gates, self.context = model.inputs_of_chain(given)
        self.h_0, self.z_0 = model.initial(self.batch, given.x)

    def kinds(self, particles: int) -> int:
        return 1

    def edges(self, kinds: int, eps_0: Tensor | None = None) -> tuple[Tensor, ...]:
        nothing = self.h_0[:, :0]
        return nothing, nothing

    def first_z(self, particles: int) -> Tensor:
        """z and h, [k B, Z+H]."""
        return torch.cat((self.z_0, self.h_0), -1).repeat(particles, 1)

    def states(
        self, eps_w: Tensor, start: int, stop: int, d_before: Tensor, a_after: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        nothing = eps_w.new_zeros(stop - start, self.batch, 0)
        return eps_w.new_zeros(eps_w.shape[:3]), nothing, d_before, None, d_before

    def hidden_inputs(self, d: Tensor, a: Tensor | None, start: int, stop: int) -> tuple[Tensor, ...]:
        """gates_x [S, B, 3H], context [S, B, M] and the external control [S, B, U], if there is one."""
        return tuple(part[start:stop] for part in (self.gates, self.context, *self.controls[2:]))

    def latents(
        self, hidden_inputs: tuple[Tensor, ...] | None, z_before: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """z and h [S, k B, Z+H] and log p(z)/q(z) [S, k B], from those before, [k B, Z+H], and eps [S, k B, Z]."""
        assert hidden_inputs is not None
        model, (gates, context), u = self.model, hidden_inputs[:2], hidden_inputs[2:]
        z_0, h_0 = z_before.split((model.latent_size, model.hidden_size), -1)
        h, z, _, logvar = model.chain(gates, model.bias_embed.expand(*eps.shape[:2], -1), context, h_0, z_0, eps)
        return torch.cat((z, h), -1), log_ratio(z, eps, logvar, model.prior_of(h, u))
