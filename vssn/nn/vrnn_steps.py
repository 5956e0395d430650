"""Steps of a VRNN's prior over weights packed once, as vssn/nn/prepared.py has them for others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn.nn.given import draw_noise
from vssn.nn.prepared import prepare, prepare_chain_gru
from vssn_kernels.activations import activate
from vssn_kernels.ops.prepared import prepare_mlp


class VRNNSteps:
    """`VRNN.step_from_prior` and `VRNN.decode` for many steps, of a model whose input is plain."""

    def __init__(self, model: Any) -> None:
        chain, linear = model.chain, model.input
        hold = model.hold(linear.weight.detach())
        self._model, self._activation = model, chain.embed_activation

        def embed(z: Tensor) -> Tensor:
            return z @ chain.weight_embed.T + model.bias_embed

        def gates(*inputs: Tensor) -> Tensor:
            *others, first, e = inputs
            gates_x: Tensor = linear(*others) + first * hold[:, 0] + e @ chain.weight_zh.T
            return gates_x

        weights = [*linear.weight.split(linear.in_sizes, 1), hold, chain.weight_zh]
        sizes = (*linear.in_sizes, 1, chain.embed_size)
        self._embed = prepare_mlp((model.latent_size,), [chain.weight_embed], model.bias_embed, None, None, embed)
        self._gates = prepare_mlp(sizes, weights, linear.bias, None, None, gates)
        self._gru = prepare_chain_gru(chain)
        self._prior = None if model.prior is None else prepare(model.prior)
        self._emission = None if model.decoder is not None else prepare(model.emission)

    def step(
        self, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Arguments as in `VRNN.step_from_prior`."""
        previous, first, *u = controls
        h = self._gru(self._gates(previous, *u, first, self._embedded(z[None]))[0], d)
        eps = (draw_noise(h[None], self._model.noise_sizes) if noise is None else noise)[1]
        if self._prior is None:
            return h, eps[0]
        mu, logvar = self._prior(h[None], *u)
        return h, (mu + torch.exp(logvar / 2) * eps)[0]

    def decode(self, z: Tensor, d: Tensor) -> Tensor:
        """Arguments as in `VRNN.decode`."""
        found: Tensor = self._model.decode(z, d) if self._emission is None else self._emission(self._embedded(z), d)
        return found

    def _embedded(self, z: Tensor) -> Tensor:
        return activate(self._embed(z), self._activation)
