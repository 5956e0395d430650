"""log p/q of a latent that was drawn from q, as the weights of particles take it."""

from __future__ import annotations

import torch
from torch import Tensor


def log_ratio(
    z: Tensor, eps: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """log p(z)/q(z) [...] of z [..., Z] drawn with eps from a q of that log-variance, with p of these, None: N(0, I).
    Memory is written over where no gradient is wanted."""
    if prior_mu is None or prior_logvar is None:
        terms = z.square()
    elif torch.is_grad_enabled():
        terms = (z - prior_mu).square() * torch.exp(-prior_logvar) + prior_logvar
    else:
        terms = (z - prior_mu).square_().mul_(torch.exp(-prior_logvar)).add_(prior_logvar)
    return (eps.square() + logvar - terms).sum(-1) / 2
