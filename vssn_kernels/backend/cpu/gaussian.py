"""gaussian_rsample_kl and gaussian_kl on the CPU: csrc/cpu/gaussian.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, as_rows, pointer, row_arguments
from vssn_kernels.backend.cpu.call import empty_like, is_float64


def gaussian_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """(z [..., Z], None without eps; kl [...])"""
    z = None if eps is None else empty_like(mu)
    kl = torch.empty(mu.shape[:-1], dtype=mu.dtype)
    inputs = [as_rows(tensor) for tensor in (mu, logvar, eps, prior_mu, prior_logvar)]
    arguments = [argument for rows in inputs for argument in row_arguments(rows)]
    _cpu.gaussian_forward(
        is_float64(mu), torch.get_num_threads(), kl.numel(), mu.shape[-1], *arguments, pointer(z), kl.data_ptr()
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
    inputs = [as_rows(tensor) for tensor in (mu, logvar, eps, prior_mu, prior_logvar, grad_z)]
    inputs.append(None if grad_kl is None else grad_kl.reshape(-1, 1))
    arguments = [argument for rows in inputs for argument in row_arguments(rows)]
    grads = tuple(empty_like(mu, need) for need in needs)
    _cpu.gaussian_backward(
        is_float64(mu),
        torch.get_num_threads(),
        mu.shape[:-1].numel(),
        mu.shape[-1],
        *arguments,
        *(pointer(grad) for grad in grads),
    )
    return grads
