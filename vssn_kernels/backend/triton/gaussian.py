"""gaussian_rsample_kl and gaussian_kl in Triton."""

from __future__ import annotations

from collections.abc import Sequence

import triton
from torch import Tensor

from vssn_kernels.backend.common import Grads
from vssn_kernels.backend.triton.configurations import gaussian_tiles
from vssn_kernels.backend.triton.kernels import gaussian as kernels
from vssn_kernels.backend.triton.launch import FUSED, emulated, new_like, on, strided


def _rows(tensor: Tensor | None) -> Tensor | None:
    """[R, Z]: a view where strides allow it, else a copy."""
    if tensor is None:
        return None
    width = tensor.shape[-1]
    return tensor.reshape(tensor.shape[:-1].numel(), width)


def gaussian_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """(z [..., Z], None without eps; kl [...])"""
    z = None if eps is None else new_like(mu, *mu.shape)
    kl = new_like(mu, *mu.shape[:-1])
    count, latent = kl.numel(), mu.shape[-1]
    if count:
        rows, columns = gaussian_tiles(latent)
        inputs = [part for tensor in (mu, logvar, eps, prior_mu, prior_logvar) for part in strided(_rows(tensor), 2)]
        with on(mu):
            kernels.gaussian_forward[(triton.cdiv(count, rows),)](
                *inputs, z, kl, count, Z=latent, ROWS=rows, COLUMNS=columns, EMULATED=emulated(mu), **FUSED
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
    grads = tuple(new_like(mu, *mu.shape) if need else None for need in needs)
    count, latent = mu.shape[:-1].numel(), mu.shape[-1]
    if mu.numel():
        rows, columns = gaussian_tiles(latent)
        tensors = (mu, logvar, eps, prior_mu, prior_logvar, grad_z)
        inputs = [part for tensor in tensors for part in strided(_rows(tensor), 2)]
        weight = strided(None if grad_kl is None else grad_kl.reshape(-1), 1)
        with on(mu):
            kernels.gaussian_backward[(triton.cdiv(count, rows), triton.cdiv(latent, columns))](
                *inputs, *weight, *grads, count, Z=latent, ROWS=rows, COLUMNS=columns, EMULATED=emulated(mu), **FUSED
            )
    return grads
