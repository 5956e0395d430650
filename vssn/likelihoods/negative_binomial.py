"""Independent counts that spread more than a Poisson's, x in {0, 1, 2, ...}.

    x_i ~ Poisson(g_i),  g_i ~ Gamma(r_i, r_i / m_i)        E[x_i] = m_i,  Var[x_i] = m_i + m_i^2 / r_i

m and r come from the decoder, as logarithms: log m bent to lie where `poisson`'s log rate does, log r to lie within
[MIN_LOG_SHAPE, MAX_LOG_SHAPE]; 1 / r is the dispersion. At the upper end, r = 1100, it is close to a Poisson. No mean
reaches 3.3 million: larger counts have a density, of the tail. A mean that was drawn up by some comes back down.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn.likelihoods.base import Likelihood, bounded, full_precision, sum_observed
from vssn.likelihoods.poisson import log_rates
from vssn.likelihoods.registry import register
from vssn.utils.checks import require_size
from vssn.utils.values import COUNTS

MIN_LOG_SHAPE, MAX_LOG_SHAPE = -7.0, 7.0


@register("negative_binomial")
class NegativeBinomial(Likelihood):
    """Independent negative binomial entries: the decoder gives log means, then the logs of r, the inverse dispersion.

    Quantiles are estimates from samples.
    """

    support = COUNTS

    def __init__(self, x_size: int, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        super().__init__(x_size, 2 * x_size)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """log m and log r."""
        mean, shape = parameters.chunk(2, -1)
        return log_rates(mean), bounded(shape, MIN_LOG_SHAPE, MAX_LOG_SHAPE)

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """[T, B, 2X], x [T, B, X], observed [T, B, X] bool or None to nats [T, B]."""
        log_mean, log_shape = self._split(full_precision(parameters))
        x = full_precision(x)
        shape, log_sum = torch.exp(log_shape), torch.logaddexp(log_mean, log_shape)
        ways = torch.lgamma(x + shape) - torch.lgamma(shape) - torch.lgamma(x + 1)
        terms = ways + shape * (log_shape - log_sum) + x * (log_mean - log_sum)
        return sum_observed(terms, observed).to(parameters.dtype)

    def mean(self, parameters: Tensor) -> Tensor:
        return torch.exp(self._split(parameters)[0])

    def sample(self, parameters: Tensor) -> Tensor:
        log_mean, log_shape = self._split(full_precision(parameters))
        rate = torch._standard_gamma(torch.exp(log_shape)) * torch.exp(log_mean - log_shape)
        return torch.poisson(rate).to(parameters.dtype)

    def floats_per_frame(self, x: Tensor) -> int:
        return super().floats_per_frame(x) + 4 * self.x_size
