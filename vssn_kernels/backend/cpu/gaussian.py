"""gaussian_rsample_kl and gaussian_kl on the CPU: csrc/cpu/gaussian.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, as_rows, pointer, row_arguments
from vssn_kernels.backend.cpu.call import empty_like, storage


def gaussian_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """(z [..., Z], None without eps; kl [...])"""
    z = None if eps is None else empty_like(mu)
    kl = torch.empty(mu.shape[:-1], dtype=mu.dtype)
    mu_, logvar_, eps_ = as_rows(mu), as_rows(logvar), as_rows(eps)
    prior_mu_, prior_logvar_ = as_rows(prior_mu), as_rows(prior_logvar)
    _cpu.gaussian_forward(
        storage=storage(mu),
        threads=torch.get_num_threads(),
        N=kl.numel(),
        Z=mu.shape[-1],
        mu=row_arguments(mu_),
        logvar=row_arguments(logvar_),
        eps=row_arguments(eps_),
        prior_mu=row_arguments(prior_mu_),
        prior_logvar=row_arguments(prior_logvar_),
        z=pointer(z),
        kl=kl.data_ptr(),
    )
    return z, kl


def gaussian_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (mu, logvar, eps, prior_mu, prior_logvar); without eps, grad_z is None."""
    mu_, logvar_, eps_ = as_rows(mu), as_rows(logvar), as_rows(eps)
    prior_mu_, prior_logvar_ = as_rows(prior_mu), as_rows(prior_logvar)
    grad_z_, grad_kl_ = as_rows(grad_z), None if grad_kl is None else grad_kl.reshape(-1, 1)
    grad_mu, grad_logvar, grad_eps, grad_prior_mu, grad_prior_logvar = (empty_like(mu, need) for need in needs)
    _cpu.gaussian_backward(
        storage=storage(mu),
        threads=torch.get_num_threads(),
        N=mu.shape[:-1].numel(),
        Z=mu.shape[-1],
        mu=row_arguments(mu_),
        logvar=row_arguments(logvar_),
        eps=row_arguments(eps_),
        prior_mu=row_arguments(prior_mu_),
        prior_logvar=row_arguments(prior_logvar_),
        grad_z=row_arguments(grad_z_),
        grad_kl=row_arguments(grad_kl_),
        grad_mu=pointer(grad_mu),
        grad_logvar=pointer(grad_logvar),
        grad_eps=pointer(grad_eps),
        grad_prior_mu=pointer(grad_prior_mu),
        grad_prior_logvar=pointer(grad_prior_logvar),
    )
    return grad_mu, grad_logvar, grad_eps, grad_prior_mu, grad_prior_logvar
