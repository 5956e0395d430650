"""The autoregressive Gaussian density: against a loop over the entries, and against the Gaussian that it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vssn.likelihoods.ar_gaussian import ArGaussian
from vssn.likelihoods.factorised import Gaussian
from vssn.likelihoods.registry import make_likelihood
from vssn.models.vssn import VSSN

X = 5
MIN_LOGVAR = -3.0


@pytest.fixture
def density() -> ArGaussian:
    density = ArGaussian(X, MIN_LOGVAR).double()
    torch.nn.init.normal_(density.weight, std=0.5)  # also on and above the diagonal, where it must not count
    return density


def entry_by_entry(density: ArGaussian, parameters: Tensor, x: Tensor) -> float:
    """The log-density of one frame from scalars."""
    total, weight = 0.0, density.weight.detach()
    for i in range(X):
        mu = float(parameters[i]) + sum(float(weight[i, j]) * float(x[j]) for j in range(i))
        logvar = MIN_LOGVAR + math.log1p(math.exp(float(parameters[X + i]) - MIN_LOGVAR))
        total -= 0.5 * (math.log(2 * math.pi) + logvar + (float(x[i]) - mu) ** 2 / math.exp(logvar))
    return total


def test_log_prob_entry_by_entry(density: ArGaussian) -> None:
    parameters, x = torch.randn(3, 2, 2 * X, dtype=torch.float64), torch.randn(3, 2, X, dtype=torch.float64)
    result = density.log_prob(parameters, x, None).detach()
    for t in range(3):
        for b in range(2):
            assert float(result[t, b]) == pytest.approx(entry_by_entry(density, parameters[t, b], x[t, b]), rel=1e-12)


def test_it_is_a_normalised_gaussian(density: ArGaussian) -> None:
    """Mean and covariance by (I - L)^-1, in an independent implementation of the density."""
    parameters, x = torch.randn(4, 1, 2 * X, dtype=torch.float64), torch.randn(4, 1, X, dtype=torch.float64)
    mu, logvar = density._split(parameters)
    mixing = torch.linalg.inv(torch.eye(X, dtype=torch.float64) - density.weight.tril(-1))
    for t in range(4):
        scale = mixing @ torch.diag(torch.exp(logvar[t, 0] / 2))
        reference = torch.distributions.MultivariateNormal(mixing @ mu[t, 0], scale @ scale.T)
        torch.testing.assert_close(density.log_prob(parameters, x, None)[t, 0], reference.log_prob(x[t, 0]))
        torch.testing.assert_close(density.mean(parameters)[t, 0], reference.mean)


def test_it_integrates_to_one() -> None:
    density = ArGaussian(2, MIN_LOGVAR).double()
    with torch.no_grad():
        density.weight[1, 0] = 0.8
    parameters = torch.tensor([0.3, -0.2, 0.1, -1.0], dtype=torch.float64)
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    mass = density.log_prob(parameters.expand(len(grid), 1, 4), grid[:, None], None).exp().sum()
    assert float(mass.detach()) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-6)


def test_samples_have_its_mean_and_covariance(density: ArGaussian) -> None:
    parameters = torch.randn(2 * X, dtype=torch.float64)
    draws = density.sample(parameters.expand(100_000, 2 * X))
    mixing = torch.linalg.inv(torch.eye(X, dtype=torch.float64) - density.weight.tril(-1))
    scale = mixing @ torch.diag(torch.exp(density._split(parameters)[1] / 2))
    covariance = (scale @ scale.T).detach()
    torch.testing.assert_close(draws.mean(0), density.mean(parameters), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(draws.T), covariance, rtol=0, atol=0.03 * float(covariance.max()) + 0.02)


def test_it_starts_as_the_gaussian() -> None:
    parameters, x = torch.randn(3, 2, 2 * X), torch.randn(3, 2, X)
    start = make_likelihood("ar_gaussian", X, {"min_logvar_x": MIN_LOGVAR})
    torch.testing.assert_close(
        start.log_prob(parameters, x, None), Gaussian(X, MIN_LOGVAR).log_prob(parameters, x, None)
    )


def test_only_whole_frames_may_be_missing(density: ArGaussian) -> None:
    parameters, x = torch.randn(3, 2, 2 * X, dtype=torch.float64), torch.randn(3, 2, X, dtype=torch.float64)
    observed = torch.ones(3, 2, X, dtype=torch.bool)
    observed[1, 0] = False
    result, full = (density.log_prob(parameters, x, mask).detach() for mask in (observed, None))
    assert float(result[1, 0]) == 0
    assert result[0].equal(full[0])
    observed[2, 1, 3] = False
    with pytest.raises(ValueError, match="mask must leave out whole frames with likelihood='ar_gaussian'"):
        density.log_prob(parameters, x, observed)


def test_a_model_learns_its_weight() -> None:
    model = VSSN(4, 6, 0, likelihood="ar_gaussian")
    model(torch.randn(5, 3, 4)).loss.backward()
    gradient = dict(model.named_parameters())["likelihood.weight"].grad
    assert gradient is not None
    assert bool((gradient.tril(-1) != 0).sum() == 6)
    assert bool((gradient.triu(0) == 0).all())
    assert model.generate(3, 2).x.shape == (3, 2, 4)
