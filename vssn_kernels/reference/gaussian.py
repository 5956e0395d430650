"""Diagonal Gaussians: the reparameterised sample and the KL divergence, with their gradients.

z  = mu + exp(logvar / 2) eps
kl = 1/2 sum_Z [lp - lq + exp(lq - lp) + (mu - mp)^2 exp(-lp) - 1]      (prior mp, lp; none: N(0, I))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels.reference.sequence import compute_dtype


def gaussian_rsample_kl(
    mu: Tensor,  # [..., Z]
    logvar: Tensor,  # [..., Z]
    eps: Tensor,  # [..., Z]
    prior_mu: Tensor | None = None,  # [..., Z]
    prior_logvar: Tensor | None = None,  # [..., Z]
) -> tuple[Tensor, Tensor]:
    """The plain function, differentiable any number of times: (z [..., Z], kl [...])."""
    dtype = compute_dtype(mu.dtype)
    z = mu.to(dtype) + torch.exp(logvar.to(dtype) / 2) * eps.to(dtype)
    return z.to(mu.dtype), gaussian_kl(mu, logvar, prior_mu, prior_logvar)


def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """The plain function: kl [...]."""
    dtype = compute_dtype(mu.dtype)
    mu_, logvar_ = mu.to(dtype), logvar.to(dtype)
    if prior_mu is None or prior_logvar is None:
        terms = torch.exp(logvar_) - logvar_ + mu_ * mu_ - 1
    else:
        difference = logvar_ - prior_logvar.to(dtype)
        scaled = (mu_ - prior_mu.to(dtype)) * torch.exp(-prior_logvar.to(dtype) / 2)  # its square alone may overflow
        terms = torch.exp(difference) - difference + scaled * scaled - 1
    return (terms.sum(-1) / 2).to(mu.dtype)


def gaussian_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Both ops: (z [..., Z], None without eps; kl [...])."""
    if eps is None:
        return None, gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    return gaussian_rsample_kl(mu, logvar, eps, prior_mu, prior_logvar)


def gaussian_backward(
    grad_z: Tensor | None,  # [..., Z]
    grad_kl: Tensor | None,  # [...]
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of (mu, logvar, eps, prior_mu, prior_logvar), None where not needed; without eps, grad_z is None.

    grad_mu += grad_z,  grad_logvar += grad_z eps exp(logvar / 2) / 2,  grad_eps = grad_z exp(logvar / 2)
    """
    dtype = compute_dtype(mu.dtype)
    grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar = _kl_gradients(grad_kl, mu, logvar, prior_mu, prior_logvar)
    grad_eps = torch.zeros_like(grad_mu)
    if grad_z is not None and eps is not None:
        dz, sigma = grad_z.to(dtype), torch.exp(logvar.to(dtype) / 2)
        grad_eps = dz * sigma
        grad_mu = dz + grad_mu
        grad_logvar = grad_eps * eps.to(dtype) / 2 + grad_logvar
    grads = (grad_mu, grad_logvar, grad_eps, grad_prior_mu, grad_prior_logvar)
    return tuple(grad.to(mu.dtype) if need else None for grad, need in zip(grads, needs, strict=True))


def _kl_gradients(
    grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d kl / d mu = (mu - mp) exp(-lp) = -d kl / d mp;  d kl / d lq = (exp(lq - lp) - 1) / 2;
    d kl / d lp = (1 - exp(lq - lp) - (mu - mp)^2 exp(-lp)) / 2"""
    dtype = compute_dtype(mu.dtype)
    mu, logvar = mu.to(dtype), logvar.to(dtype)
    prior_mu = torch.zeros_like(mu) if prior_mu is None else prior_mu.to(dtype)
    prior_logvar = torch.zeros_like(mu) if prior_logvar is None else prior_logvar.to(dtype)
    weight = torch.zeros_like(mu[..., :1]) if grad_kl is None else grad_kl.to(dtype)[..., None]
    factor = torch.exp(-prior_logvar / 2)  # its square alone may overflow
    scaled = (mu - prior_mu) * factor
    excess, grad = torch.exp(logvar - prior_logvar) - 1, weight * (scaled * factor)
    return grad, weight * excess / 2, -grad, -weight * (excess + scaled * scaled) / 2
