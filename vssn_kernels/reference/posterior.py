"""The sampled chain of Gaussian latents, in plain PyTorch and with the backward written by hand.

hidden    = act(context_t + W_z z_{t-1})
(mu, raw) = W_out hidden + b_out
mu       += W_mu act(prior.context_t + W_pz z_{t-1}) + b_mu           (residual posterior only)
logvar    = min_logvar + softplus(raw - min_logvar)
z_t       = mu + exp(logvar / 2) eps_t
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn_kernels.activations import activate, activation_slope
from vssn_kernels.reference.sequence import (
    compute_dtype,
    each_step,
    outer_sum,
    softplus,
    stack_steps,
    valid_steps,
    zero_padding,
)


def posterior_sequence(
    context: Tensor,  # [T, B, M]
    z0: Tensor,  # [B, Z]
    eps: Tensor,  # [T, B, Z]
    weight_z: Tensor,  # [M, Z]
    weight_out: Tensor,  # [2Z, M]
    bias_out: Tensor,  # [2Z]
    *,
    activation: str = "tanh",
    min_logvar: float = -12.0,
    prior: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain function, differentiable any number of times: (z, mu, logvar), each [T, B, Z]."""
    z, mu, logvar, _, _ = _unroll(
        context, z0, eps, weight_z, weight_out, bias_out, prior, lengths, activation, min_logvar
    )
    return z.to(context.dtype), mu.to(context.dtype), logvar.to(context.dtype)


def posterior_forward(
    context: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_z: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    prior_context: Tensor | None,  # [T, B, M]
    prior_weight_z: Tensor | None,  # [M, Z]
    prior_weight_mu: Tensor | None,  # [Z, M]
    prior_bias_mu: Tensor | None,  # [Z]
    lengths: Tensor | None,
    activation: str,
    min_logvar: float,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(z, mu, logvar [T, B, Z], hidden, prior_hidden [T, B, M]: before the activation; empty if not needed)."""
    parts = (prior_context, prior_weight_z, prior_weight_mu, prior_bias_mu)
    prior = tuple(part for part in parts if part is not None) or None  # all four or none: the op checks it
    z, mu, logvar, hidden, prior_hidden = _unroll(
        context, z0, eps, weight_z, weight_out, bias_out, prior, lengths, activation, min_logvar
    )
    dtype = context.dtype
    empty = context.new_empty
    return (
        z.to(dtype),
        mu.to(dtype),
        logvar.to(dtype),
        hidden.to(dtype) if need_backward else empty(0),
        prior_hidden.to(dtype) if need_backward and prior_context is not None else empty(0),
    )


def _unroll(
    context: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_z: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    prior: tuple[Tensor, ...] | None,
    lengths: Tensor | None,
    activation: str,
    min_logvar: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = compute_dtype(context.dtype)
    steps, hidden_size, latent = context.shape[0], context.shape[2], z0.shape[1]
    valid = valid_steps(lengths, steps)
    contexts, noise = (each_step(zero_padding(tensor.to(dtype), valid)) for tensor in (context, eps))
    weight_z, weight_out, bias_out = (tensor.to(dtype) for tensor in (weight_z, weight_out, bias_out))
    if prior is not None:
        prior = tuple(tensor.to(dtype) for tensor in prior)
        prior_contexts = each_step(zero_padding(prior[0], valid))
    z = z0.to(dtype)
    results: list[list[Tensor]] = [[], [], [], [], []]
    for t in range(steps):
        if valid is not None:  # what is carried over padding has no gradient, not a NaN either
            z = zero_padding(z, valid[t])
        hidden = contexts[t] + z @ weight_z.T
        mu, raw = F.linear(activate(hidden, activation), weight_out, bias_out).chunk(2, -1)
        prior_hidden = hidden
        if prior is not None:
            prior_hidden = prior_contexts[t] + z @ prior[1].T
            mu = mu + F.linear(activate(prior_hidden, activation), prior[2], prior[3])
        logvar = min_logvar + softplus(raw - min_logvar)
        z = mu + torch.exp(logvar / 2) * noise[t]
        for result, value in zip(results, (z, mu, logvar, hidden, prior_hidden), strict=True):
            result.append(value)
    widths = (latent, latent, latent, hidden_size, hidden_size)
    z_all, mu_all, logvar_all, hidden_all, prior_hidden_all = (
        zero_padding(stack_steps(result, context, width), valid) for result, width in zip(results, widths, strict=True)
    )
    return z_all, mu_all, logvar_all, hidden_all, prior_hidden_all


def posterior_backward(
    grad_z: Tensor | None,  # [T, B, Z]
    grad_mu: Tensor | None,  # [T, B, Z]
    grad_logvar: Tensor | None,  # [T, B, Z]
    z: Tensor,
    logvar: Tensor,
    hidden: Tensor,
    prior_hidden: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_z: Tensor,
    weight_out: Tensor,
    prior_weight_z: Tensor | None,
    prior_weight_mu: Tensor | None,
    lengths: Tensor | None,
    activation: str,
    min_logvar: float,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of (context, z0, eps, weight_z, weight_out, bias_out, prior.context, prior.weight_z,
    prior.weight_mu, prior.bias_mu), None where not needed.

    With dz the gradient that reaches z_t, and sigma = exp(logvar / 2):
        grad_mu  += dz                            grad_eps = dz sigma
        grad_raw  = (grad_logvar + dz sigma eps_t / 2) (1 - exp(min_logvar - logvar))
        grad_context = act'(hidden) * [grad_mu, grad_raw] W_out
        grad_prior_context = act'(prior_hidden) * grad_mu W_mu
        dz <- grad_context W_z + grad_prior_context W_pz          (+ grad_z of step t - 1)
    """
    storage, dtype = z.dtype, compute_dtype(z.dtype)
    steps, batch, latent = z.shape
    valid = valid_steps(lengths, steps)
    logvar = logvar.to(dtype)
    sigma = zero_padding(torch.exp(logvar / 2), valid)
    noise = sigma * zero_padding(eps.to(dtype), valid) / 2  # d z / d logvar
    slope_raw = zero_padding(-torch.expm1(min_logvar - logvar), valid)
    hidden, prior_hidden = hidden.to(dtype), prior_hidden.to(dtype)
    weight_z_, weight_out_ = weight_z.to(dtype), weight_out.to(dtype)
    zero = torch.zeros_like(z, dtype=dtype)
    grad_z, grad_mu, grad_logvar = (
        zero if grad is None else zero_padding(grad.to(dtype), valid) for grad in (grad_z, grad_mu, grad_logvar)
    )

    dz = zero.new_zeros(batch, latent)
    grads_out, grads_z, grads_context, grads_prior = ([dz] * steps for _ in range(4))
    for t in reversed(range(steps)):
        total = dz + grad_z[t]
        grads_z[t] = total
        grads_out[t] = torch.cat((grad_mu[t] + total, (grad_logvar[t] + total * noise[t]) * slope_raw[t]), -1)
        grads_context[t] = grads_out[t] @ weight_out_ * activation_slope(hidden[t], activation)
        dz = grads_context[t] @ weight_z_
        if prior_weight_z is not None and prior_weight_mu is not None:
            grad_prior_hidden = grads_out[t][:, :latent] @ prior_weight_mu.to(dtype)
            grads_prior[t] = grad_prior_hidden * activation_slope(prior_hidden[t], activation)
            dz = dz + grads_prior[t] @ prior_weight_z.to(dtype)
        if valid is not None:
            dz = zero_padding(dz, valid[t])  # 0 already, unless a weight is NaN
    out = stack_steps(grads_out, zero, 2 * latent)
    context = zero_padding(stack_steps(grads_context, zero, hidden.shape[-1]), valid)
    prior_context = zero
    if prior_weight_z is not None:
        prior_context = zero_padding(stack_steps(grads_prior, zero, hidden.shape[-1]), valid)
    previous = z.to(dtype)  # z_{t-1}
    if steps:
        previous = zero_padding(torch.cat((z0.to(dtype)[None], z[:-1].to(dtype))), valid)
    activated = activate(hidden, activation)

    grads = (
        lambda: context,
        lambda: dz.clone(),
        lambda: stack_steps(grads_z, zero, latent) * sigma,
        lambda: outer_sum(context, previous),
        lambda: outer_sum(out, activated),
        lambda: out.sum((0, 1)),
        lambda: prior_context,
        lambda: outer_sum(prior_context, previous),
        lambda: outer_sum(out[..., :latent], activate(prior_hidden, activation)),
        lambda: out[..., :latent].sum((0, 1)),
    )
    dtypes = [storage, z0.dtype] + [storage] * 8
    return tuple(grad().to(dtype_) if need else None for grad, dtype_, need in zip(grads, dtypes, needs, strict=True))
