"""posterior_sequence on the CPU: csrc/cpu/posterior.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import (
    Grads,
    activated,
    as_rows,
    as_steps,
    pointer,
    row_arguments,
    step_arguments,
)
from vssn_kernels.backend.cpu.call import empty_like, empty_sums, storage, stored, widened


def posterior_forward(
    context: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_z: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    prior_context: Tensor | None,
    prior_weight_z: Tensor | None,
    prior_weight_mu: Tensor | None,
    prior_bias_mu: Tensor | None,
    lengths: Tensor | None,
    activation: str,
    min_logvar: float,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(z, mu, logvar [T, B, Z], hidden, prior_hidden [T, B, M]: after the activation, for "silu" before it; empty
    where not needed)"""
    steps, batch, width = context.shape
    latent = z0.shape[1]
    prior = prior_context is not None
    dtype = context.dtype
    z, mu, logvar = (torch.empty((steps, batch, latent), dtype=dtype) for _ in range(3))
    hidden, prior_hidden = (
        torch.empty((steps, batch, width) if keep else 0, dtype=dtype)
        for keep in (need_backward, need_backward and prior)
    )
    context_, eps_, prior_context_ = as_steps(context), as_steps(eps), as_steps(prior_context)
    z0_, weight_z_, weight_out_ = as_rows(widened(z0)), as_rows(weight_z), as_rows(weight_out)
    prior_weight_z_, prior_weight_mu_ = as_rows(prior_weight_z), as_rows(prior_weight_mu)
    bias, prior_bias = bias_out.contiguous(), None if prior_bias_mu is None else prior_bias_mu.contiguous()
    _cpu.posterior_forward(
        storage=storage(context),
        threads=torch.get_num_threads(),
        steps=steps,
        B=batch,
        M=width,
        Z=latent,
        activation=activation,
        min_logvar=min_logvar,
        lengths=pointer(lengths),
        context=step_arguments(context_),
        eps=step_arguments(eps_),
        z0=row_arguments(z0_),
        weight_z=row_arguments(weight_z_),
        weight_out=row_arguments(weight_out_),
        bias_out=pointer(bias),
        prior_context=step_arguments(prior_context_),
        prior_weight_z=row_arguments(prior_weight_z_),
        prior_weight_mu=row_arguments(prior_weight_mu_),
        prior_bias_mu=pointer(prior_bias),
        z=z.data_ptr(),
        mu=mu.data_ptr(),
        logvar=logvar.data_ptr(),
        hidden=hidden.data_ptr() if need_backward else 0,
        prior_hidden=prior_hidden.data_ptr() if need_backward and prior else 0,
    )
    return z, mu, logvar, hidden, prior_hidden


def posterior_backward(
    grad_z: Tensor | None,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
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
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (context, z0, eps, weight_z, weight_out, bias_out, prior_context, prior_weight_z, prior_weight_mu,
    prior_bias_mu)."""
    steps, batch, latent = z.shape
    width = hidden.shape[-1]
    prior = prior_weight_z is not None
    grad_context = torch.empty(hidden.shape, dtype=z.dtype)
    grad_prior_context = torch.empty(hidden.shape, dtype=z.dtype) if prior else None
    grad_out = torch.empty((steps, batch, 2 * latent), dtype=z.dtype)
    grad_z0, grad_eps = empty_sums(z0.shape, z.dtype, needs[1]), empty_like(eps, needs[2])
    grad_z_, grad_mu_, grad_logvar_, eps_ = as_steps(grad_z), as_steps(grad_mu), as_steps(grad_logvar), as_steps(eps)
    weight_z_, weight_out_ = as_rows(weight_z), as_rows(weight_out)
    prior_weight_z_, prior_weight_mu_ = as_rows(prior_weight_z), as_rows(prior_weight_mu)
    z0_ = as_rows(stored(z0, z.dtype))
    active, prior_active = activated(hidden, activation), activated(prior_hidden, activation)
    shapes = ((width, latent), (2 * latent, width), (2 * latent,), (width, latent), (latent, width), (latent,))
    grad_weight_z, grad_weight_out, grad_bias_out, grad_prior_weight_z, grad_prior_weight_mu, grad_prior_bias_mu = (
        empty_sums(shape, z.dtype, need) for shape, need in zip(shapes, (*needs[3:6], *needs[7:]), strict=True)
    )
    _cpu.posterior_backward(
        storage=storage(z),
        threads=torch.get_num_threads(),
        steps=steps,
        B=batch,
        M=width,
        Z=latent,
        activation=activation,
        min_logvar=min_logvar,
        lengths=pointer(lengths),
        grad_z=step_arguments(grad_z_),
        grad_mu=step_arguments(grad_mu_),
        grad_logvar=step_arguments(grad_logvar_),
        logvar=pointer(logvar),
        hidden=pointer(hidden),
        prior_hidden=pointer(prior_hidden) if prior else 0,
        eps=step_arguments(eps_),
        weight_z=row_arguments(weight_z_),
        weight_out=row_arguments(weight_out_),
        prior_weight_z=row_arguments(prior_weight_z_),
        prior_weight_mu=row_arguments(prior_weight_mu_),
        z=pointer(z),
        z0=row_arguments(z0_),
        active=active.data_ptr(),
        prior_active=prior_active.data_ptr() if prior else 0,
        grad_context=grad_context.data_ptr(),
        grad_prior_context=pointer(grad_prior_context),
        grad_out=grad_out.data_ptr(),
        grad_eps=pointer(grad_eps),
        grad_z0=pointer(grad_z0),
        grad_weight_z=pointer(grad_weight_z),
        grad_weight_out=pointer(grad_weight_out),
        grad_bias_out=pointer(grad_bias_out),
        grad_prior_weight_z=pointer(grad_prior_weight_z),
        grad_prior_weight_mu=pointer(grad_prior_weight_mu),
        grad_prior_bias_mu=pointer(grad_prior_bias_mu),
    )
    return (
        grad_context if needs[0] else None,
        stored(grad_z0, z0.dtype),
        grad_eps,
        stored(grad_weight_z, z.dtype),
        stored(grad_weight_out, z.dtype),
        stored(grad_bias_out, z.dtype),
        grad_prior_context if needs[6] else None,
        stored(grad_prior_weight_z, z.dtype),
        stored(grad_prior_weight_mu, z.dtype),
        stored(grad_prior_bias_mu, z.dtype),
    )
