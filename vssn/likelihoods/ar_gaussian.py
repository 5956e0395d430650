"""Gaussian entries that are autoregressive within the frame, the emission density of a plain speech baseline: Lai et
al. (2019) find that a deterministic RNN with an output of this kind closes the gap to models with latents.

    x_i ~ N(mu_i + sum_{j < i} weight[i, j] x_j, exp logvar_i),    i = 1..X in the order of the features

mu and the raw log-variance come from the decoder, frame by frame; the weight, strictly lower triangular, is the
density's own: a linear predictor of a sample from all samples before it in the frame. With L the weight,

    (I - L) x = mu + noise        E[x] = (I - L)^-1 mu        log-determinant of (I - L) = 0

so that mean and samples are one triangular solve. With weight 0, where training starts, it is `gaussian`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vssn.likelihoods.base import Likelihood, full_precision
from vssn.likelihoods.registry import register
from vssn.nn.blocks import floor_logvar, gaussian_log_density
from vssn.utils.checks import require_number, require_size
from vssn.utils.sequences import terms_of_whole_frames
from vssn.utils.values import require_whole_frames


@register("ar_gaussian")
class ArGaussian(Likelihood):
    """Linear-Gaussian entries, each given those before it.

    Args:
        x_size: X.
        min_logvar: floor of the log-variances.
        device, dtype: of the parameters.
    """

    options = (("min_logvar", "min_logvar_x"),)
    whole_frames = True

    def __init__(self, x_size: int, min_logvar: float, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        super().__init__(x_size, 2 * x_size)
        require_number("min_logvar", min_logvar)
        self.min_logvar = min_logvar
        self.weight = nn.Parameter(torch.empty(x_size, x_size, **factory))  # only what is below the diagonal counts
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def multiplied(self) -> Tensor:
        return self.weight

    def forward(self, mu: Tensor, x: Tensor | None = None) -> Tensor:
        """The means of all entries given those before them in x, or without x the frame that (I - L) maps to mu, each
        [..., X]: `log_prob`, `sample` and `mean` call the module, so that its hooks take part."""
        return self._solve(mu) if x is None else mu + x @ self.weight.tril(-1).T

    def log_prob(self, parameters: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
        """[T, B, 2X], x [T, B, X], observed [T, B, X] bool or None to nats [T, B].

        Raises:
            ValueError: a frame is observed in part: what stands before an entry must be known.
        """
        mu, logvar = self._split(parameters)
        terms = gaussian_log_density(x, self(mu, x), logvar).sum(-1)
        return terms_of_whole_frames(terms, observed, self.title)

    def given_observed(self, parameters: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        require_whole_frames(observed, self.title)
        return parameters

    def mean(self, parameters: Tensor) -> Tensor:
        return self(self._split(parameters)[0])

    def sample(self, parameters: Tensor) -> Tensor:
        mu, logvar = self._split(parameters)
        return self(mu + torch.exp(logvar / 2) * torch.randn_like(mu))

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        """Of a Gaussian: the variances of the entries are those of the noise through (I - L)^-1."""
        mu, logvar = self._split(parameters)
        mixing = self._solve(torch.eye(self.x_size, dtype=mu.dtype, device=mu.device)).T
        deviation = (torch.exp(logvar) @ mixing.square().T).sqrt()
        return self(mu) + deviation * torch.special.ndtri(mu.new_tensor(q, dtype=torch.float64)).to(mu.dtype)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = parameters.chunk(2, -1)
        return mu, floor_logvar(raw, self.min_logvar)

    def _solve(self, right: Tensor) -> Tensor:
        """(I - L)^-1 right, for each of [..., X]."""
        system = full_precision(-self.weight.tril(-1))  # the diagonal of ones is implied
        columns = full_precision(right.reshape(-1, self.x_size).T)
        solved = torch.linalg.solve_triangular(system, columns, upper=False, unitriangular=True)
        return solved.T.reshape(right.shape).to(right.dtype)
