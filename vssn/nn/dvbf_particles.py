"""Weighted particles of a DVBF."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn.nn.chain_particles import ChainParticles
from vssn.nn.interface import EncodedBatch
from vssn.nn.log_ratio import log_ratio
from vssn.nn.states import Seen


class DVBFParticles(ChainParticles):
    """`vssn.nn.interface.ParticleHooks` of a vssn.DVBF, for a batch that it has prepared. w_t is drawn given the z of
    the frame before, so that a particle that is drawn anew goes on from its ancestor's z."""

    def __init__(self, model: Any, given: EncodedBatch, lengths: Tensor) -> None:
        start = model.start_state(None, given.x.shape[1], given.x) if given.start is None else given.start
        super().__init__(start.d, start.z)
        self.model, self.seen = model, model.look_at(given, lengths)

    def hidden_inputs(self, d: Tensor, a: Tensor | None, start: int, stop: int) -> tuple[Tensor, ...]:
        """Of every frame: that it is the first, mean and log-variance of q(w_1), the embedding and the control."""
        seen, frames = self.seen, slice(start, stop)
        initial = torch.cat(seen.initial, -1).expand(stop - start, -1, -1)
        return (seen.first[frames], initial, seen.embedded[frames], *(part[frames] for part in seen.u))

    def latents(
        self, hidden_inputs: tuple[Tensor, ...] | None, z_before: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """z [S, k B, Z] and log p(w)/q(w) [S, k B], from the z before [k B, Z] and eps [S, k B, W]."""
        assert hidden_inputs is not None
        first, initial, embedded, *u = hidden_inputs
        mu, logvar = initial[0].chunk(2, -1)
        z, w, _, logvar = self.model.draw(Seen(embedded, first, tuple(u), (mu, logvar)), z_before, eps)
        return z, log_ratio(w, eps, logvar)
