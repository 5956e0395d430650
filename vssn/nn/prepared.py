"""Networks prepared for loops of single steps: their weights packed once, for calls without gradients.

    step = prepare_step(recurrence)     h = step(inputs, h)            inputs [1, B, ·] each, h [B, H]
    network = prepare(network)          called as the network is

Made before a loop and dropped behind it: what is prepared has the weights as they were then. A network that is not
plain (hooks, a parametrization, another class; blocks.py) is called as it is, and so is one whose call is to be
differentiated: the same numbers, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from vssn.nn.blocks import (
    MLP,
    GaussianMLP,
    LatentNetwork,
    Recurrence,
    SplitLinear,
    is_plain,
    is_plain_latent,
    is_plain_linear,
    is_plain_recurrence,
)
from vssn.nn.interleaved import InterleavedChain
from vssn_kernels import gru_sequence
from vssn_kernels.activations import activate
from vssn_kernels.ops.prepared import prepare_gru, prepare_mlp

Step = Callable[[tuple[Tensor, ...], Tensor], Tensor]


def prepare_step(recurrence: Recurrence, weight_noise: Tensor | None = None) -> Step:
    """One step of a recurrence: step(inputs, h), each input [1, B, in_sizes[i]], h [B, H], to the next h [B, H].

    Args:
        weight_noise: [3H, H] is added to weight_hh.
    """
    if not is_plain_recurrence(recurrence):
        return lambda inputs, h: recurrence(inputs, h, weight_noise=weight_noise)[1]

    def plain(gates_x: Tensor, h: Tensor) -> Tensor:
        return recurrence.run(gates_x[None], h, weight_noise=weight_noise)[1]

    input = prepare(recurrence.input)
    weight = recurrence.weight_hh if weight_noise is None else recurrence.weight_hh + weight_noise
    step = prepare_gru(weight, recurrence.bias_hh, plain)
    return lambda inputs, h: step(input(*inputs)[0], h)


def prepare_chain_gru(chain: InterleavedChain) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of the chain's GRU: step(gates_x [B, 3H] with the embedding's share, h [B, H]), to the next h."""

    def plain(gates_x: Tensor, h: Tensor) -> Tensor:
        return gru_sequence(gates_x[None], h, chain.weight_hh, chain.bias_hh)[1]

    return prepare_gru(chain.weight_hh, chain.bias_hh, plain)


def prepare(network: nn.Module) -> Callable[..., Any]:
    """What a call of the network gives, for many calls: a SplitLinear, MLP, GaussianMLP or LatentNetwork with its
    weights packed; any other module is returned as it is."""
    if is_plain(network, SplitLinear):
        linear = cast(SplitLinear, network)
        return prepare_mlp(linear.in_sizes, [linear.weight], linear.bias, None, None, linear)
    if (is_plain(network, MLP) or is_plain(network, GaussianMLP)) and cast(MLP, network)._is_fused():
        of = cast(MLP, network)
        weight, bias, weight_out, bias_out = of._parameters_in_order()
        sizes = of.hidden.in_sizes
        floor = of.min_logvar if isinstance(of, GaussianMLP) else None
        return prepare_mlp(sizes, [weight], bias, weight_out, bias_out, of, activation=of.activation, min_logvar=floor)
    if is_plain(network, MLP):
        return prepare_layers(cast(MLP, network))
    if is_plain_latent(network):
        return _prepare_latent(cast(LatentNetwork, network))
    return network


def is_own(thing: object, cls: type, *methods: str) -> bool:
    """Whether the methods are those of `cls`: no subclass's and none that was set on the object, for these must be
    called."""
    return all(getattr(type(thing), name) is getattr(cls, name) and name not in vars(thing) for name in methods)


def prepare_layers(network: MLP) -> Callable[..., Any]:
    """`MLP.forward` of the network one layer after the other, whatever its activation; what is not plain is called."""
    hidden, out = prepare(network.hidden), cast(Callable[..., Any], network.out)
    if is_plain_linear(network.out):
        linear = network.out
        out = prepare_mlp([linear.in_features], [linear.weight], linear.bias, None, None, linear)
    return lambda *inputs: out(activate(hidden(*inputs), network.activation))


def _prepare_latent(network: LatentNetwork) -> Callable[..., Any]:
    context, weights, bias = network.context, [network.weight_z], network.bias
    sizes: tuple[int, ...] = ()
    if context is not None:
        if not is_plain(context, SplitLinear):
            return network
        sizes, bias = context.in_sizes, context.bias
        weights += context.weight.split(sizes, 1)
    assert bias is not None
    run = prepare_mlp(
        (network.latent_size, *sizes),
        weights,
        bias,
        network.out.weight,
        network.out.bias,
        lambda z_previous, *inputs: network(z_previous, inputs),
        activation=network.activation,
        min_logvar=network.min_logvar,
    )
    return lambda z_previous, inputs: run(z_previous, *inputs)


class LayerSteps:
    """`VSSNLayer.step_from_prior` for many steps: steps(controls, d, z, noise) -> (d, z)."""

    def __init__(self, layer: Any, weight_noise: Tensor | None) -> None:
        self._layer = layer
        self._duration = prepare_step(layer.duration, weight_noise) if layer.hidden_size else None
        self._prior = prepare(layer.prior) if layer.latent_size else None

    def __call__(
        self, controls: tuple[Tensor, ...], d: Tensor, z: Tensor, noise: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Arguments as in `VSSNLayer.step_from_prior`."""
        eps_w, eps_z = (self._layer.draw_noise(d[None]) if noise is None else noise)[:2]  # behind them eps_0
        if self._duration is not None:
            d = self._duration((*controls, eps_w), d)
        if self._prior is not None:
            mu, logvar = self._prior(z[None], self._layer.parents(d[None], controls))
            z = (mu + torch.exp(logvar / 2) * eps_z)[0]
        return d, z
