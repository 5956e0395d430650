"""The chain of latents of a `vssn.nn.layer.VSSNLayer`: z_t ~ q(z_t | z_{t-1}, a_t), serial through the sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vssn.nn.blocks import is_plain_latent
from vssn.utils.sequences import valid_steps, with_first, zero_padding
from vssn_kernels import PriorMean, posterior_sequence


class LatentChain(NamedTuple):
    """z_{1:T} and the Gaussians that it was drawn from and is charged against, each [T, B, Z]."""

    z: Tensor
    mu: Tensor
    logvar: Tensor
    prior_mu: Tensor
    prior_logvar: Tensor


def fuses_latents(layer: Any) -> bool:
    """Whether the chain of z may read its networks' weights: `infer_latent`, else `infer_latents_by_steps`."""
    return is_plain_latent(layer.posterior) and (not layer.residual_posterior or is_plain_latent(layer.prior))


def infer_latents(
    layer: Any, a: Tensor, parents: tuple[Tensor, ...], z0: Tensor, eps_z: Tensor, lengths: Tensor | None
) -> LatentChain:
    """Samples z given a [T, B, A] and the parents of the prior, each [T, B, ·]. The rest as in `infer_latent`."""
    if not fuses_latents(layer):
        return infer_latents_by_steps(layer, a, parents, z0, eps_z, lengths)
    # Inside the loop the prior's mean is needed, so that its hidden inputs stand before it; else they need not.
    hidden_inputs = layer.prior.hidden_inputs(parents, a) if layer.residual_posterior else None
    z, mu, logvar = infer_latent(layer, layer.posterior.hidden_inputs((a,), a), hidden_inputs, z0, eps_z, lengths)
    z_previous = with_first(z0, z)[:-1]  # in this order: a size T - 1 would bind T where the layer is exported
    prior = (
        layer.prior(z_previous, parents)
        if hidden_inputs is None
        else layer.prior.from_hidden_inputs(z_previous, hidden_inputs)
    )
    return LatentChain(z, mu, logvar, *prior)


def infer_latents_by_steps(
    layer: Any,
    a: Tensor,
    parents: tuple[Tensor, ...],
    z0: Tensor,
    eps_z: Tensor,
    lengths: Tensor | None = None,
) -> LatentChain:
    """`infer_latents` with a call of the posterior, and of a residual posterior's prior, at every step."""
    valid = valid_steps(lengths, eps_z)
    eps_z, z, steps = zero_padding(eps_z, valid), z0.to(a.dtype), []
    for t in range(len(eps_z)):
        here = slice(t, t + 1)
        mu, logvar = layer.posterior(z[None], (a[here],))
        prior: tuple[Tensor, ...] = ()
        if layer.residual_posterior:
            prior = layer.prior(z[None], tuple(part[here] for part in parents))
            mu = mu + prior[0]
        step = (mu + torch.exp(logvar / 2) * eps_z[here], mu, logvar, *prior)
        valid_here = None if valid is None else valid[here]
        steps.append([zero_padding(part, valid_here).to(a.dtype) for part in step])
        z = steps[-1][0][0]
    if not steps:
        return LatentChain(eps_z, eps_z, eps_z, eps_z, eps_z)
    z, mu, logvar, *both = (torch.cat(part) for part in zip(*steps, strict=True))
    return LatentChain(z, mu, logvar, *(both or layer.prior(with_first(z0, z[:-1]), parents)))


def infer_latent(
    layer: Any,
    hidden_inputs: Tensor,
    prior_hidden_inputs: Tensor | None,
    z0: Tensor,
    eps_z: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples z_t ~ q(z_t | z_{t-1}, a_t) in turn: z, and the mean and log-variance of q, each [T, B, Z].

    Args:
        hidden_inputs: [T, B, M] what a_t adds to the hidden layer of a posterior plain as `fuses_latents` says.
        prior_hidden_inputs: [T, B, M] what d_t adds to the prior's; used with residual_posterior, None without.
        z0: [B, Z].
        eps_z: [T, B, Z] standard normal.
        lengths: [B] int64 or None.
    """
    prior = None
    if layer.residual_posterior and prior_hidden_inputs is not None:
        weight_mu, _ = layer.prior.out.weight.chunk(2)
        bias_mu, _ = layer.prior.out.bias.chunk(2)
        prior = PriorMean(prior_hidden_inputs, layer.prior.weight_z, weight_mu, bias_mu)
    network = layer.posterior
    return posterior_sequence(
        hidden_inputs,
        z0,
        eps_z,
        network.weight_z,
        network.out.weight,
        network.out.bias,
        activation=layer.activation,
        min_logvar=layer.min_logvar,
        prior=prior,
        lengths=lengths,
    )
