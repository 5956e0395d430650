"""Independent entries with heavy tails: an outlier costs the logarithm of its distance where a Gaussian has the square.

    x_i = mu_i + exp(logvar_i / 2) t_i,    t_i of Student's distribution with df_i degrees of freedom

mu and the raw log-variance of the scale come from the decoder, frame by frame, as a Gaussian's do. The degrees of
freedom are the density's own, one for a feature: df = MIN_DF + softplus(raw_df), above 2, so that there is a variance,
exp(logvar) df / (df - 2); START_DF where training starts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood, full_precision, sum_observed
from vssn.likelihoods.registry import register
from vssn.nn.blocks import floor_logvar
from vssn.utils.checks import require_number, require_size

MIN_DF, START_DF = 2.1, 10.0
GRID = 20001  # points of the quadrature of a quantile


@register("student_t")
class StudentT(Likelihood):
    """Independent Student-t entries: the decoder gives the location, then the raw log of the squared scale.

    Args:
        x_size: X.
        min_logvar: floor of the log of the squared scale.
        device, dtype: of the parameters.
    """

    options = (("min_logvar", "min_logvar_x"),)

    def __init__(self, x_size: int, min_logvar: float, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        super().__init__(x_size, 2 * x_size)
        require_number("min_logvar", min_logvar)
        self.min_logvar = min_logvar
        self.raw_df = nn.Parameter(torch.empty(x_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.raw_df, math.log(math.expm1(START_DF - MIN_DF)))

    def df(self) -> Tensor:
        """The degrees of freedom, [X], float32 at least."""
        return MIN_DF + F.softplus(full_precision(self.raw_df))

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = parameters.chunk(2, -1)
        return mu, floor_logvar(raw, self.min_logvar)

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """[T, B, 2X], x [T, B, X], observed [T, B, X] bool or None to nats [T, B]."""
        mu, logvar = self._split(full_precision(parameters))
        df = self.df()
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - torch.log(df * math.pi) / 2
        distance = torch.log1p((x - mu) ** 2 * torch.exp(-logvar) / df)
        return sum_observed(constant - logvar / 2 - (df + 1) / 2 * distance, observed).to(parameters.dtype)

    def mean(self, parameters: Tensor) -> Tensor:
        return self._split(parameters)[0]

    def sample(self, parameters: Tensor) -> Tensor:
        mu, logvar = self._split(parameters)
        df = self.df()
        # A Gaussian over the root of chi^2 / df, which is Gamma(df / 2) 2 / df.
        shared = torch._standard_gamma((df / 2).expand_as(mu)) * 2 / df
        return mu + torch.exp(logvar / 2) * torch.randn_like(mu) * torch.rsqrt(shared).to(mu.dtype)

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        mu, logvar = self._split(parameters)
        standard = [student_t_quantile(df, q) for df in self.df().tolist()]
        return mu + torch.exp(logvar / 2) * mu.new_tensor(standard)


def student_t_quantile(df: float, q: float) -> float:
    """The q-quantile of Student's distribution: with t = sqrt(df) tan a the density of a is cos(a)^(df - 1), scaled,
    which is summed over a grid by Simpson's rule and inverted between two of its points."""
    angle = torch.linspace(-math.pi / 2, math.pi / 2, 2 * GRID - 1, dtype=torch.float64)
    density = torch.cos(angle).clamp(min=0) ** (df - 1)
    pieces = density[:-2:2] + 4 * density[1:-1:2] + density[2::2]
    below = torch.cat((pieces.new_zeros(1), pieces.cumsum(0))) / pieces.sum()
    ends = angle[::2]
    place = int(torch.searchsorted(below, q).clamp(1, len(below) - 1))
    share = (q - below[place - 1]) / (below[place] - below[place - 1])
    return float(math.sqrt(df) * torch.tan(ends[place - 1] + share * (ends[place] - ends[place - 1])))
