"""gaussian_rsample_kl and gaussian_kl of the `cuda` backend: one kernel each way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cuda
from vssn_kernels.backend.cuda.memory import STORAGE, launch_on, pointer, row_arguments, rows

Grads = tuple[Tensor | None, ...]


def gaussian_rsample_kl_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(z [..., Z], kl [...])"""
    z = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
    return z, _forward(mu, logvar, eps, prior_mu, prior_logvar, z)


def gaussian_kl_forward(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """kl [...]"""
    return _forward(mu, logvar, None, prior_mu, prior_logvar, None)


def gaussian_rsample_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (mu, logvar, eps, prior_mu, prior_logvar)."""
    return _backward(grad_z, grad_kl, mu, logvar, eps, prior_mu, prior_logvar, needs)


def gaussian_kl_backward(
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (mu, logvar, prior_mu, prior_logvar)."""
    needs = (needs[0], needs[1], False, needs[2], needs[3])
    grads = _backward(None, grad_kl, mu, logvar, None, prior_mu, prior_logvar, needs)
    return grads[:2] + grads[3:]


def _forward(
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    z: Tensor | None,
) -> Tensor:
    kl = torch.empty(mu.shape[:-1], dtype=mu.dtype, device=mu.device)
    inputs = [rows(tensor) for tensor in (mu, logvar, eps, prior_mu, prior_logvar)]
    arguments = [argument for flat in inputs for argument in row_arguments(flat)]
    with launch_on(mu) as stream:
        _cuda.gaussian_forward(
            STORAGE[mu.dtype], kl.numel(), mu.shape[-1], *arguments, pointer(z), kl.data_ptr(), stream
        )
    return kl


def _backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    needs: Sequence[bool],
) -> Grads:
    inputs = [rows(tensor) for tensor in (mu, logvar, eps, prior_mu, prior_logvar, grad_z)]
    inputs.append(None if grad_kl is None else grad_kl.reshape(-1, 1))
    arguments = [argument for flat in inputs for argument in row_arguments(flat)]
    grads = tuple(torch.empty(mu.shape, dtype=mu.dtype, device=mu.device) if need else None for need in needs)
    with launch_on(mu) as stream:
        _cuda.gaussian_backward(
            STORAGE[mu.dtype],
            mu.shape[:-1].numel(),
            mu.shape[-1],
            *arguments,
            *(pointer(grad) for grad in grads),
            stream,
        )
    return grads
