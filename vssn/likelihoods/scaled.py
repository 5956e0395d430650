"""A likelihood of real numbers in the unit of the data, from one of standardised frames s = (x - mean) / std:

log p(x) = log p(s) - sum of log std over what is observed        E[x] = std E[s] + mean
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vssn.likelihoods.base import Likelihood
from vssn.utils.values import REAL


class Scaled(Likelihood):
    """Takes and returns frames in the unit of the data.

    Args:
        inner: a likelihood of real numbers, for standardised frames.
        mean, std: [X] of the data.

    Raises:
        ValueError: the likelihood is of other values: they have no other unit.
    """

    mean_x: Tensor
    std_x: Tensor

    def __init__(self, inner: Likelihood, mean: Tensor, std: Tensor) -> None:
        if inner.support != REAL:
            raise ValueError(
                f"scaling must be None with {inner.title}, whose x must {inner.support.text}: values of that kind are "
                "not standardised"
            )
        super().__init__(inner.x_size, inner.parameter_size)
        self.inner: Any = inner
        self.title = inner.title
        self.register_buffer("mean_x", mean.detach().clone())
        self.register_buffer("std_x", std.detach().clone())

    def standardised(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """x [..., X] as the networks see it: 0 where it is not observed."""
        scaled = (x - self.mean_x) / self.std_x
        return scaled if observed is None else torch.where(observed, scaled, scaled.new_zeros(()))

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """[T, B, P], x [T, B, X], observed [T, B, X] bool or None to nats [T, B]."""
        inside = self.inner.log_prob(parameters, self.standardised(x, observed), observed)
        log_std = self.std_x.log()
        jacobian = log_std.sum() if observed is None else (log_std * observed).sum(-1)
        scaled: Tensor = inside - jacobian
        return scaled

    def mean(self, parameters: Tensor) -> Tensor:
        return self._in_units(self.inner.mean(parameters))

    def sample(self, parameters: Tensor) -> Tensor:
        return self._in_units(self.inner.sample(parameters))

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        return self._in_units(self.inner.quantile(parameters, q))

    def given_observed(self, parameters: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        """The parameters of what is missing given what is observed, as the inner likelihood has them."""
        given: Tensor = self.inner.given_observed(parameters, self.standardised(x, observed), observed)
        return given

    def floats_per_frame(self, x: Tensor) -> int:
        return int(self.inner.floats_per_frame(x)) + 3 * self.x_size

    def _in_units(self, frame: Tensor) -> Tensor:
        return frame * self.std_x + self.mean_x
