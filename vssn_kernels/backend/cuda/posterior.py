"""posterior_sequence on the GPU: csrc/cuda/posterior_forward.cu and posterior_backward.cu, and the gradients of the
weights as products after the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vssn_kernels import _cuda
from vssn_kernels.backend.common import (
    Grads,
    activated,
    allows_tf32,
    as_rows,
    as_steps,
    pointer,
    row_arguments,
    step_arguments,
    weight_gradients,
)
from vssn_kernels.backend.cuda.launch import STORAGE, launch_on

VARIANTS = ("choice", "registers", "shared", "cluster", "scatter", "streamed")  # csrc/cuda/posterior.h

# Which variant of the kernels runs. For the tests, which set it.
variant = "choice"


class Plan(NamedTuple):
    """How the kernels are laid out for a size on the current device."""

    variant: str
    cluster: int  # blocks that share a batch tile
    warps: int
    tiles: int  # of weights, in a block
    kept: int  # of these in shared memory
    shared_bytes: int  # of a block
    workspace_bytes: int
    at_once: int  # batch tiles, by the device's own answer; 0 of registers, as next
    step_cycles: float  # an estimate


def plan(
    dtype: torch.dtype, width: int, latent: int, prior: bool, backward: bool, tf32: bool = False, batch: int = 8
) -> Plan:
    """The layout for M = width, Z = latent and B = batch."""
    sizes = _sizes(dtype, batch, width, latent, prior, backward, tf32)
    return Plan(**_cuda.posterior_plan(**sizes))


def _sizes(
    dtype: torch.dtype, batch: int, width: int, latent: int, prior: bool, backward: bool, tf32: bool
) -> dict[str, object]:
    return {
        "storage": STORAGE[dtype],
        "tf32": tf32,
        "B": batch,
        "M": width,
        "Z": latent,
        "prior": prior,
        "backward": backward,
        "variant": variant,
    }


def _workspace(like: Tensor, latent: int, prior: bool, backward: bool, tf32: bool) -> Tensor | None:
    """For a call whose context, or its gradient, is `like` [T, B, M]."""
    _, batch, width = like.shape
    size = _cuda.posterior_workspace(**_sizes(like.dtype, batch, width, latent, prior, backward, tf32))
    return torch.empty(size, dtype=torch.uint8, device=like.device) if size else None


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
    z, mu, logvar = (context.new_empty(steps, batch, latent) for _ in range(3))
    hidden, prior_hidden = (
        context.new_empty((steps, batch, width) if keep else 0) for keep in (need_backward, need_backward and prior)
    )
    if steps == 0 or batch == 0:
        return z, mu, logvar, hidden, prior_hidden
    context_, prior_context_, eps_, z0_ = as_steps(context), as_steps(prior_context), as_steps(eps), as_rows(z0)
    weight_z_, weight_out_ = as_rows(weight_z), as_rows(weight_out)
    prior_weight_z_, prior_weight_mu_ = as_rows(prior_weight_z), as_rows(prior_weight_mu)
    bias, prior_bias = bias_out.contiguous(), None if prior_bias_mu is None else prior_bias_mu.contiguous()
    tf32 = context.dtype is torch.float32 and allows_tf32()
    with launch_on(context) as stream:
        workspace = _workspace(context, latent, prior, False, tf32)
        _cuda.posterior_forward(
            storage=STORAGE[context.dtype],
            tf32=tf32,
            float_state=z0.dtype is torch.float32,
            variant=variant,
            steps=steps,
            B=batch,
            M=width,
            Z=latent,
            activation=activation,
            min_logvar=min_logvar,
            lengths=pointer(lengths),
            eps=step_arguments(eps_),
            weight_z=row_arguments(weight_z_),
            weight_out=row_arguments(weight_out_),
            prior_weight_z=row_arguments(prior_weight_z_),
            prior_weight_mu=row_arguments(prior_weight_mu_),
            workspace=pointer(workspace),
            stream=stream,
            context=step_arguments(context_),
            prior_context=step_arguments(prior_context_),
            z0=row_arguments(z0_),
            bias_out=bias.data_ptr(),
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
    grad_context = torch.empty_like(hidden) if needs[0] or needs[3] else None
    grad_prior_context = torch.empty_like(hidden) if prior and (needs[6] or needs[7]) else None
    grad_out = z.new_empty(*z.shape[:2], 2 * latent)
    grad_z0 = torch.empty(z0.shape, dtype=z0.dtype, device=z0.device) if needs[1] else None
    grad_eps = torch.empty_like(z) if needs[2] else None
    if batch > 0:
        grad_z_, grad_mu_, grad_logvar_, eps_ = (
            as_steps(grad_z),
            as_steps(grad_mu),
            as_steps(grad_logvar),
            as_steps(eps),
        )
        weight_z_, weight_out_ = as_rows(weight_z), as_rows(weight_out)
        prior_weight_z_, prior_weight_mu_ = as_rows(prior_weight_z), as_rows(prior_weight_mu)
        tf32 = z.dtype is torch.float32 and allows_tf32()
        with launch_on(z) as stream:
            workspace = _workspace(hidden, latent, prior, True, tf32)
            _cuda.posterior_backward(
                storage=STORAGE[z.dtype],
                tf32=tf32,
                float_state=z0.dtype is torch.float32,
                variant=variant,
                steps=steps,
                B=batch,
                M=width,
                Z=latent,
                activation=activation,
                min_logvar=min_logvar,
                lengths=pointer(lengths),
                eps=step_arguments(eps_),
                weight_z=row_arguments(weight_z_),
                weight_out=row_arguments(weight_out_),
                prior_weight_z=row_arguments(prior_weight_z_),
                prior_weight_mu=row_arguments(prior_weight_mu_),
                workspace=pointer(workspace),
                stream=stream,
                grad_z=step_arguments(grad_z_),
                grad_mu=step_arguments(grad_mu_),
                grad_logvar=step_arguments(grad_logvar_),
                logvar=logvar.data_ptr(),
                hidden=hidden.data_ptr(),
                prior_hidden=prior_hidden.data_ptr() if prior else 0,
                grad_context=pointer(grad_context),
                grad_prior_context=pointer(grad_prior_context),
                grad_out=grad_out.data_ptr(),
                grad_eps=pointer(grad_eps),
                grad_z0=pointer(grad_z0),
            )
    grad_weight_z = grad_weight_out = grad_bias = grad_prior_weight_z = grad_prior_weight_mu = grad_prior_bias = None
    if grad_context is not None and needs[3]:
        grad_weight_z = weight_gradients(grad_context, z, z0, lengths, False, z.new_empty(width, latent))
    if needs[4]:
        grad_weight_out = torch.mm(grad_out.flatten(0, 1).t(), activated(hidden.flatten(0, 1), activation))
    if needs[5]:
        grad_bias = grad_out.sum((0, 1))
    if grad_prior_context is not None and needs[7]:
        grad_prior_weight_z = weight_gradients(grad_prior_context, z, z0, lengths, False, z.new_empty(width, latent))
    if needs[8]:
        grad_prior_mu = grad_out[..., :latent].flatten(0, 1)
        grad_prior_weight_mu = torch.mm(grad_prior_mu.t(), activated(prior_hidden.flatten(0, 1), activation))
    if needs[9]:
        grad_prior_bias = grad_out[..., :latent].sum((0, 1))
    return (
        grad_context if needs[0] else None,
        grad_z0,
        grad_eps,
        grad_weight_z,
        grad_weight_out,
        grad_bias,
        grad_prior_context if needs[6] else None,
        grad_prior_weight_z,
        grad_prior_weight_mu,
        grad_prior_bias,
    )
