"""Independent counts, x in {0, 1, 2, ...}: spikes in a bin, arrivals in an hour.

    x_i ~ Poisson(exp l_i),    l_i = the decoder's number, bent to lie within [MIN_LOG_RATE, MAX_LOG_RATE]

so a rate lies between 3e-7 and 3e6, none overflows, and one that is far off has a gradient that leads back. Larger
counts, which no rate comes near, are refused.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vssn.likelihoods.base import Likelihood, bounded, full_precision, sum_observed
from vssn.likelihoods.registry import register
from vssn.utils.checks import require_size
from vssn.utils.values import COUNTS

MIN_LOG_RATE, MAX_LOG_RATE = -15.0, 15.0
MOST = math.floor(math.exp(MAX_LOG_RATE))


@register("poisson")
class Poisson(Likelihood):
    """Independent Poisson entries; the decoder gives log rates."""

    support = COUNTS

    def __init__(self, x_size: int, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        super().__init__(x_size, x_size)
        self.support = COUNTS._replace(text=f"hold counts 0, 1, 2, ... up to {MOST}", high=float(MOST))

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Raw log rates [T, B, X], x [T, B, X], observed [T, B, X] bool or None to nats [T, B]."""
        log_rate, x = log_rates(full_precision(parameters)), full_precision(x)
        terms = x * log_rate - torch.exp(log_rate) - torch.lgamma(x + 1)
        return sum_observed(terms, observed).to(parameters.dtype)

    def mean(self, parameters: Tensor) -> Tensor:
        """The rates."""
        return torch.exp(log_rates(parameters))

    def sample(self, parameters: Tensor) -> Tensor:
        return torch.poisson(self.mean(full_precision(parameters))).to(parameters.dtype)

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        """The least count k with P(x <= k) = Q(k + 1, rate) >= q, between two counts that are brought together."""
        rate = self.mean(parameters).double()
        below, above = torch.full_like(rate, -1.0), torch.ceil(rate + 40 * rate.sqrt() + 60)
        while bool((above - below > 1).any()):
            middle = torch.floor((below + above) / 2)
            enough = torch.special.gammaincc(middle + 1, rate) >= q
            below, above = torch.where(enough, below, middle), torch.where(enough, middle, above)
        return above.to(parameters.dtype)


def log_rates(raw: Tensor) -> Tensor:
    return bounded(raw, MIN_LOG_RATE, MAX_LOG_RATE)
