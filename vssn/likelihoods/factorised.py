"""Entries that are independent given the latents, Bernoulli or Gaussian, and a mixture of such Gaussians."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn.likelihoods.base import Likelihood, draw_class, sum_observed
from vssn.likelihoods.registry import register
from vssn.nn.blocks import floor_logvar, gaussian_log_density
from vssn.utils.checks import require_number, require_size
from vssn.utils.values import UNIT
from vssn_kernels import bernoulli_log_prob


@register("bernoulli")
class Bernoulli(Likelihood):
    """Independent Bernoulli entries; x in [0, 1] (between the ends: the cross-entropy)."""

    support = UNIT

    def __init__(self, x_size: int, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        super().__init__(x_size, x_size)

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Logits [T, B, X], x [T, B, X], observed [T, B, X] bool or None to nats [T, B]."""
        if observed is None:
            return bernoulli_log_prob(parameters, x)
        return sum_observed(x * parameters - F.softplus(parameters), observed)

    def mean(self, parameters: Tensor) -> Tensor:
        return torch.sigmoid(parameters)

    def sample(self, parameters: Tensor) -> Tensor:
        return torch.bernoulli(torch.sigmoid(parameters))

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        return (torch.sigmoid(-parameters) < q).to(parameters.dtype)


@register("gaussian")
class Gaussian(Likelihood):
    """Independent Gaussian entries: the decoder gives the mean, then the raw log-variance."""

    options = (("min_logvar", "min_logvar_x"),)

    def __init__(self, x_size: int, min_logvar: float, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        super().__init__(x_size, 2 * x_size)
        require_number("min_logvar", min_logvar)
        self.min_logvar = min_logvar

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = parameters.chunk(2, -1)
        return mu, floor_logvar(raw, self.min_logvar)

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """[T, B, 2X], x [T, B, X], observed [T, B, X] bool or None to nats [T, B]."""
        mu, logvar = self._split(parameters)
        terms = gaussian_log_density(x, mu, logvar)
        return sum_observed(terms, observed)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, -1)[0]

    def sample(self, parameters: Tensor) -> Tensor:
        mu, logvar = self._split(parameters)
        return mu + torch.exp(logvar / 2) * torch.randn_like(mu)

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        mu, logvar = self._split(parameters)
        return mu + torch.exp(logvar / 2) * torch.special.ndtri(mu.new_tensor(q, dtype=torch.float64)).to(mu.dtype)


@register("mixture")
class Mixture(Likelihood):
    """A mixture of K diagonal Gaussians over the whole frame: K weights, then K means, then K raw log-variances."""

    options = (("mixture_size", "mixture_size"), ("min_logvar", "min_logvar_x"))

    def __init__(self, x_size: int, mixture_size: int, min_logvar: float, **factory: Any) -> None:
        require_size("x_size", x_size, 1)
        require_size("mixture_size", mixture_size, 1)
        super().__init__(x_size, mixture_size * (1 + 2 * x_size))
        require_number("min_logvar", min_logvar)
        self.mixture_size, self.min_logvar = mixture_size, min_logvar

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, x_size = self.mixture_size, self.x_size
        weights, mu, raw = parameters.split((k, k * x_size, k * x_size), -1)
        shape = (*parameters.shape[:-1], k, x_size)
        return F.log_softmax(weights, -1), mu.reshape(shape), floor_logvar(raw.reshape(shape), self.min_logvar)

    def forward(self, parameters: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """[T, B, K(1 + 2X)], x [T, B, X], observed [T, B, X] bool or None to nats [T, B]."""
        return torch.logsumexp(self._joint(parameters, x, observed), -1)

    def _joint(self, parameters: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
        """log p(component, what is observed of x): [T, B, K]."""
        log_weights, mu, logvar = self._split(parameters)
        terms = gaussian_log_density(x[..., None, :], mu, logvar)
        return log_weights + sum_observed(terms, None if observed is None else observed[..., None, :])

    def given_observed(self, parameters: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        """What is observed of a frame says which component it came from."""
        rest = parameters[..., self.mixture_size :]
        return torch.cat((self._joint(parameters, x, observed), rest), -1)

    def mean(self, parameters: Tensor) -> Tensor:
        log_weights, mu, _ = self._split(parameters)
        return (log_weights.exp()[..., None] * mu).sum(-2)

    def sample(self, parameters: Tensor) -> Tensor:
        log_weights, mu, logvar = self._split(parameters)
        chosen = draw_class(log_weights)[..., None, None]
        index = chosen.expand(*chosen.shape[:-1], self.x_size)
        mu, logvar = mu.gather(-2, index).squeeze(-2), logvar.gather(-2, index).squeeze(-2)
        return mu + torch.exp(logvar / 2) * torch.randn_like(mu)

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        """It lies between those of the components, where the entry's distribution function is brought to q by
        halves."""
        log_weights, mu, logvar = (part.double() for part in self._split(parameters))
        weights, scale = log_weights.exp()[..., None], torch.exp(logvar / 2)
        own = mu + scale * torch.special.ndtri(mu.new_tensor(q))
        low, high = own.amin(-2), own.amax(-2)
        for _ in range(60):
            middle = (low + high) / 2
            below = (weights * torch.special.ndtr((middle[..., None, :] - mu) / scale)).sum(-2) < q
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).to(parameters.dtype)
