"""Steps of an RSSMLayer's prior over weights packed once, as vssn/nn/prepared.py has them for others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vssn.nn.blocks import is_plain
from vssn.nn.prepared import prepare_chain_gru, prepare_layers
from vssn.nn.rssm_latents import ClassesMLP, GaussianOfScale, Parameters
from vssn_kernels.activations import activate
from vssn_kernels.ops.prepared import prepare_mlp


class RSSMSteps:
    """`RSSMLayer.step_from_prior` for many steps, of a layer whose `action` is plain."""

    def __init__(self, layer: Any) -> None:
        chain, action = layer.chain, layer.action
        self._latent, self._activation, self._prior = layer.latent, layer.activation, layer.prior

        def embed(z: Tensor, *actions: Tensor) -> Tensor:
            beside: Tensor = action(actions[0] if actions else None, z.shape[:-1])
            return z @ chain.weight_embed.T + beside

        def gates(e: Tensor) -> Tensor:
            gates_x: Tensor = e @ chain.weight_zh.T + layer.gates_bias
            return gates_x

        weights, sizes = [chain.weight_embed], [layer.latent_size]
        if action.weight is not None:
            weights, sizes = [*weights, action.weight], [*sizes, layer.action_size]
        self._embed = prepare_mlp(sizes, weights, action.bias, None, None, embed)
        self._gates = prepare_mlp([layer.joint_size], [chain.weight_zh], layer.gates_bias, None, None, gates)
        self._gru = prepare_chain_gru(chain)
        if is_plain(layer.prior, GaussianOfScale) or is_plain(layer.prior, ClassesMLP):
            raw, read = prepare_layers(layer.prior), layer.prior.read
            self._prior = lambda h: read(raw(h))

    def __call__(self, h: Tensor, z: Tensor, action: Tensor | None, eps: Tensor) -> tuple[Tensor, Tensor, Parameters]:
        """Arguments as in `RSSMLayer.step_from_prior`."""
        joint = self._embed(z) if action is None else self._embed(z, action)
        h = self._gru(self._gates(activate(joint, self._activation)), h)
        parameters: Parameters = self._prior(h)
        return h, self._latent.draw(parameters, eps), parameters
