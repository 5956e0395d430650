"""Poisson, negative binomial, categorical and Student-t entries, and the quantiles of every likelihood: against scipy's
distributions, with gradients, samples, missing entries and bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from vssn import VSSN, sequence_bounds
from vssn.likelihoods import LIKELIHOODS, Likelihood, make_likelihood
from vssn.likelihoods.base import bounded
from vssn.likelihoods.negative_binomial import MAX_LOG_SHAPE, MIN_LOG_SHAPE
from vssn.likelihoods.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from vssn.likelihoods.student_t import MIN_DF, START_DF, student_t_quantile
from vssn_kernels.testing import assert_close

X, C = 4, 3
NEW = ("poisson", "negative_binomial", "categorical", "student_t")
GIVEN = {"mixture_size": 3, "nade_size": 5, "num_classes": C, "min_logvar_x": -6.0}
each = pytest.mark.parametrize("name", NEW)


def make(name: str) -> Likelihood:
    likelihood = make_likelihood(name, X, GIVEN).double()
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return likelihood


def parameters_of(likelihood: Likelihood, *shape: int, scale: float = 1.0) -> Tensor:
    source = torch.Generator().manual_seed(3)
    return scale * torch.randn(*shape, likelihood.parameter_size, generator=source, dtype=torch.float64)


def values_for(name: str, *shape: int) -> Tensor:
    source = torch.Generator().manual_seed(4)
    x = 3 * torch.randn(*shape, X, generator=source, dtype=torch.float64)
    return x if name == "student_t" else x.abs().round().clamp(max=C - 1 if name == "categorical" else math.inf)


def floored(raw: np.ndarray[Any, Any], low: float) -> np.ndarray[Any, Any]:
    return low + np.log1p(np.exp(raw - low))


def of_scipy(likelihood: Likelihood, name: str, parameters: Tensor) -> Any:
    """The same distribution of every entry, frozen; of a categorical one a list over the classes."""
    rows = parameters.numpy()
    first, second = rows[..., :X], rows[..., X : 2 * X]
    if name == "poisson":
        return stats.poisson(np.exp(first))
    if name == "negative_binomial":
        shape = np.exp(second)
        return stats.nbinom(shape, shape / (shape + np.exp(first)))
    if name == "categorical":
        table = np.exp(rows.reshape(*rows.shape[:-1], X, C))
        return table / table.sum(-1, keepdims=True)
    df = MIN_DF + np.log1p(np.exp(likelihood.raw_df.detach().numpy()))
    return stats.t(df, loc=first, scale=np.exp(floored(second, -6.0) / 2))


def log_terms(name: str, reference: Any, x: Tensor) -> Tensor:
    if name == "categorical":
        return torch.from_numpy(np.log(np.take_along_axis(reference, x.numpy().astype(int)[..., None], -1)[..., 0]))
    return torch.from_numpy((reference.logpdf if name == "student_t" else reference.logpmf)(x.numpy()))


@each
def test_log_prob_is_scipys(name: str) -> None:
    likelihood = make(name)
    parameters, x = parameters_of(likelihood, 6, 5), values_for(name, 6, 5)
    terms = log_terms(name, of_scipy(likelihood, name, parameters), x)
    with torch.no_grad():
        assert_close("log_prob", likelihood.log_prob(parameters, x, None), terms.sum(-1), 1e-12)
        observed = torch.rand(6, 5, X) > 0.4
        observed[0, 0] = False
        got = likelihood.log_prob(parameters, x, observed)
        assert_close("of what is observed", got, torch.where(observed, terms, 0.0).sum(-1), 1e-12)
    assert got[0, 0] == 0


@each
def test_it_sums_to_one(name: str) -> None:
    likelihood = make(name)
    parameters = parameters_of(likelihood, 1)
    if name == "student_t":  # over the angle of x = tan a: its tails are long
        angle = torch.linspace(-math.pi / 2, math.pi / 2, 200_001, dtype=torch.float64)[1:-1]
        grid, width = torch.tan(angle), (angle[1] - angle[0]) / torch.cos(angle).square()
    else:
        grid = torch.arange(C if name == "categorical" else 20_000, dtype=torch.float64)
        width = torch.ones_like(grid)
    for feature in range(X):
        x, observed = torch.zeros(len(grid), 1, X).double(), torch.zeros(len(grid), 1, X, dtype=torch.bool)
        x[..., feature], observed[..., feature] = grid[:, None], True
        density = likelihood.log_prob(parameters.expand(len(grid), 1, -1), x, observed)[:, 0].exp()
        assert float((density * width).sum().detach()) == pytest.approx(1, abs=1e-7)


@each
def test_gradcheck(name: str) -> None:
    likelihood, x = make(name), values_for(name, 3, 2)
    parameters = parameters_of(likelihood, 3, 2).requires_grad_()
    observed = torch.rand(3, 2, X) > 0.3
    own = dict(likelihood.named_parameters())

    def log_prob(parameters: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(
            likelihood, dict(zip(own, given, strict=True)), (parameters, x, observed), strict=True
        )

    torch.autograd.gradcheck(log_prob, (parameters, *own.values()))


@each
def test_moments_of_samples(name: str) -> None:
    torch.manual_seed(0)
    likelihood, count = make(name), 40_000
    parameters = parameters_of(likelihood, 2, scale=0.7)
    reference = of_scipy(likelihood, name, parameters)
    with torch.no_grad():
        draws = likelihood.sample(parameters.expand(count, 2, -1))
        mean = likelihood.mean(parameters)
    if name == "categorical":
        table = torch.from_numpy(reference)
        want, frequencies = (
            table @ torch.arange(C).double(),
            torch.stack([(draws == c).double().mean(0) for c in range(C)], -1),
        )
        assert ((frequencies - table).abs() < 5 * (table / count).sqrt()).all()
        assert_close("probabilities", likelihood.probabilities(parameters), table, 1e-12)
        assert torch.equal(likelihood.mode(parameters), table.argmax(-1).double())
    else:
        want = torch.from_numpy(reference.mean())
        tails = name == "student_t"  # whose fourth moment may not be there: quartiles tell the scale
        quantiles = (0.25, 0.75) if tails else ()
        for q in quantiles:
            assert_close(f"quantile {q}", draws.quantile(q, 0), torch.from_numpy(reference.ppf(q)), 0.05)
        if not tails:
            assert_close("variance", draws.var(0), torch.from_numpy(reference.var()), 0.06)
    error = draws.std(0) / count**0.5
    assert ((draws.mean(0) - want).abs() < 5 * error).all()
    assert_close("mean", mean, want, 1e-5)
    support = likelihood.support
    assert ((draws >= support.low) & (draws <= support.high)).all()
    assert not support.whole or torch.equal(draws, draws.round())


@pytest.mark.parametrize("raw", [-1e4, 1e4])
@each
def test_no_raw_parameter_is_too_large(name: str, raw: float) -> None:
    likelihood = make(name).float()
    parameters = torch.full((2, 1, likelihood.parameter_size), raw, requires_grad=True)
    for value in (0.0, 1.0) if name == "categorical" else (0.0, 1.0, 1e4):
        if name == "categorical":
            parameters.data[..., 0] = -raw
        log_prob = likelihood.log_prob(parameters, torch.full((2, 1, X), value), None)
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), parameters)[0].isfinite().all()
    with torch.no_grad():
        assert likelihood.mean(parameters).isfinite().all()
        if name in ("poisson", "negative_binomial"):
            log_mean = likelihood.mean(parameters).log()
            assert_close("bound", log_mean, torch.full_like(log_mean, MIN_LOG_RATE if raw < 0 else MAX_LOG_RATE), 1e-5)
            assert likelihood.sample(parameters).isfinite().all()
        if name == "negative_binomial":
            low, high = float(likelihood._split(parameters)[1].min()), float(likelihood._split(parameters)[1].max())
            assert MIN_LOG_SHAPE - 1e-5 < low <= high < MAX_LOG_SHAPE + 1e-5


def test_degrees_of_freedom_have_a_floor_and_train() -> None:
    likelihood = make_likelihood("student_t", X, GIVEN)
    assert_close("df at the start", likelihood.df(), torch.full((X,), START_DF), 1e-5)
    with torch.no_grad():
        likelihood.raw_df.fill_(-100.0)
    assert_close("df at its floor", likelihood.df(), torch.full((X,), MIN_DF), 1e-6)
    model = VSSN(X, 5, 2, likelihood="student_t")
    model(torch.randn(5, 3, X)).loss.backward()
    assert model.likelihood.raw_df.grad.abs().min() > 0


# Bounds


def test_bounds_leave_the_middle_as_it_is_and_bend_what_is_beyond() -> None:
    raw = torch.tensor([-14.0, -5.0, -4.0, 0.5, 1.0, 2.0, 11.0, 1e9], dtype=torch.float64).requires_grad_()
    want = torch.tensor([-5 + 1 / 11, -4.5, -4.0, 0.5, 1.0, 1.5, 2 - 1 / 11, 2 - 1e-9], dtype=torch.float64)
    slopes = torch.tensor([1 / 121, 0.25, 1.0, 1.0, 1.0, 0.25, 1 / 121, 1e-18], dtype=torch.float64)
    got = bounded(raw, -5.0, 2.0)
    assert_close("values", got, want, 1e-15)
    (found,) = torch.autograd.grad(got.sum(), raw)
    torch.testing.assert_close(found, slopes, rtol=1e-8, atol=0.0)
    assert bounded(torch.tensor([-3e38, 3e38, -math.inf, math.inf]), -5.0, 2.0).tolist() == [-5.0, 2.0, -5.0, 2.0]


@pytest.mark.parametrize("raw", [-60.0, 60.0])
@pytest.mark.parametrize("name", ["poisson", "negative_binomial"])
def test_a_mean_that_is_far_off_has_a_gradient_that_leads_back(name: str, raw: float) -> None:
    """Where exp(raw) was, it had one of 1e-19, which no optimizer takes for one."""
    likelihood = make(name).float()
    parameters = torch.zeros(1, 1, likelihood.parameter_size)
    parameters[..., :X] = raw
    parameters.requires_grad_()
    (grad,) = torch.autograd.grad(likelihood.log_prob(parameters, torch.full((1, 1, X), 20.0), None).sum(), parameters)
    assert bool((grad[..., :X].sign() == -math.copysign(1, raw)).all())
    assert float(grad[..., :X].abs().min()) > 1e-4


def test_a_negative_binomial_that_is_far_off_is_trained() -> None:
    """In its mean or its shape, below or above: to counts that were drawn with a mean of 20 and a shape of 2."""
    source = np.random.default_rng(0)
    x = torch.from_numpy(source.poisson(source.gamma(2.0, 10.0, (300, 1, X)))).float()
    likelihood = make("negative_binomial").float()
    parameters = torch.tensor([-60.0, 60.0, 3.0, 3.0, 0.0, 0.0, -60.0, 60.0]).requires_grad_()
    optimizer = torch.optim.Adam([parameters], 0.1)
    for _ in range(4000):
        optimizer.zero_grad()
        (-likelihood.log_prob(parameters.expand(*x.shape[:2], -1), x, None).mean()).backward()
        optimizer.step()
    mean = likelihood.mean(parameters.detach())
    assert bool(((mean / x.mean((0, 1)) - 1).abs() < 0.01).all()), mean
    assert bool(((parameters[X:].exp() / 2 - 1).abs() < 0.4).all()), parameters[X:].exp()


# Quantiles


@pytest.mark.parametrize("df", [2.1, 3.0, 10.0, 1000.0])
def test_students_quantiles(df: float) -> None:
    for q in (0.001, 0.1, 0.5, 0.9, 0.999):
        assert student_t_quantile(df, q) == pytest.approx(stats.t(df).ppf(q), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5, 0.9, 0.99])
@each
def test_quantiles_are_scipys(name: str, q: float) -> None:
    torch.manual_seed(0)
    likelihood = make(name)
    parameters = parameters_of(likelihood, 3, 2)
    got, reference = likelihood.quantile(parameters, q), of_scipy(likelihood, name, parameters)
    assert got.shape == (3, 2, X)
    assert got.dtype == torch.float64
    if name == "negative_binomial":  # by samples: near the quantile in probability
        assert (reference.cdf(got.numpy()) > q - 0.05).all()
        assert (reference.cdf(got.numpy() - 1) < q + 0.05).all()
        return
    want = (reference.cumsum(-1) < q).sum(-1) if name == "categorical" else reference.ppf(q)
    assert_close("quantile", got, torch.from_numpy(np.asarray(want, dtype=float)), 1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_quantiles_are_those_of_samples(name: str) -> None:
    torch.manual_seed(0)
    likelihood = make(name)
    parameters = parameters_of(likelihood, 2)
    with torch.no_grad():
        draws = likelihood.sample(parameters.expand(20_000, 2, -1))
    for q in (0.1, 0.5, 0.9):
        at = likelihood.quantile(parameters, q)
        assert ((draws <= at).double().mean(0) > q - 0.05).all(), q
        assert ((draws < at).double().mean(0) < q + 0.05).all(), q


def test_a_share_that_is_none_is_named() -> None:
    for wrong in (0.0, 1.0, 90, True, math.nan):
        with pytest.raises(ValueError, match=r"^q must be a float between 0 and 1, got"):
            make("poisson").quantile(torch.zeros(1, X).double(), wrong)


# In a model


@each
def test_forecast_and_bounds(name: str) -> None:
    model = VSSN(X, 5, 2, 2, likelihood=name, num_classes=C)
    x = values_for(name, 12, 3).float()
    drawn = model.forecast(x, 4)
    assert drawn.x.shape == drawn.mean.shape == (4, 3, X)
    want = sequence_bounds(model, x, particles=9).total
    assert (want < 0).all()
    assert_close("within a limit", sequence_bounds(model, x, particles=9, memory=120_000).total, want, 1e-5)


def test_number_of_classes_is_named() -> None:
    with pytest.raises(ValueError, match=r"^num_classes must be an int of at least 2, got 1$"):
        VSSN(X, 5, 2, likelihood="categorical", num_classes=1)
    assert "Categorical(4, num_classes=3)" in repr(VSSN(X, 5, 2, likelihood="categorical", num_classes=3))
    from vssn.training.config import load_config

    config = load_config("demo", ["model.likelihood=student_t", "model.num_classes=3"])
    assert config.build_model().likelihood.name == "student_t"
