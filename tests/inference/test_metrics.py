"""Scores of forecasts against independent computations, with missing truth, padding and both layouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from vssn.inference.metrics import (
    coverage,
    crps,
    crps_of_quantiles,
    mae,
    mase,
    quantile_loss,
    rmse,
    seasonal_scale,
)

S, T, B, X = 7, 5, 3, 2
LEVELS = (0.1, 0.3, 0.5, 0.9)


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and a truth of which some is missing."""
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(S, T, B, X, generator=generator)
    truth = torch.randn(T, B, X, generator=generator)
    truth[1, 2] = truth[4, 0, 1] = torch.nan
    return samples, truth


def test_crps_is_the_fair_one_pair_by_pair(case: Any) -> None:
    samples, truth = case
    scores = []
    for index in zip(*np.nonzero(~np.isnan(truth.numpy())), strict=True):
        drawn, true = samples[(slice(None), *index)].double().numpy(), float(truth[index])
        pairs = [abs(a - b) for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i != j]
        scores.append(np.mean(np.abs(drawn - true)) - np.mean(pairs) / 2)
    assert crps(samples, truth) == pytest.approx(np.mean(scores), rel=1e-12)


def test_crps_is_that_of_scoringrules(case: Any) -> None:
    rules = pytest.importorskip("scoringrules")
    samples, truth = case
    theirs = rules.crps_ensemble(truth.double().numpy(), samples.double().numpy(), m_axis=0, estimator="fair")
    assert crps(samples, truth) == pytest.approx(np.nanmean(theirs), rel=1e-9)


def test_crps_of_many_samples_is_that_of_their_distribution() -> None:
    """Unbiased, so a few samples of many entries do; of a standard normal at x: x (2 F - 1) + 2 f - 1 / sqrt(pi)."""
    samples = torch.randn(4, 200_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for true in (0.0, 1.5):
        density = stats.norm(0, 1)
        exact = true * (2 * density.cdf(true) - 1) + 2 * density.pdf(true) - 1 / math.sqrt(math.pi)
        assert crps(samples, torch.full((200_000, 1, 1), true)) == pytest.approx(exact, abs=0.005)


def test_crps_of_quantiles_is_the_integral() -> None:
    """Of (F - 1{y >= x})^2, by quadrature, for the truth beyond, between and at the quantiles."""
    points = (-1.0, 0.0, 0.5, 2.0)

    def distribution(y: float) -> float:
        if y < points[0]:
            return 0.0
        return 1.0 if y >= points[-1] else float(np.interp(y, points, LEVELS))

    quantiles = torch.tensor(points).view(-1, 1, 1, 1)
    for true in (-3.0, -1.0, -0.2, 0.5, 1.7, 2.0, 4.0):
        exact, _ = integrate.quad(
            lambda y, true=true: (distribution(y) - (y >= true)) ** 2, -5, 5, points=[*points, true], limit=500
        )
        assert crps_of_quantiles(quantiles, LEVELS, torch.full((1, 1, 1), true)) == pytest.approx(exact, rel=1e-6)


def test_equal_quantiles_are_a_point() -> None:
    quantiles = torch.full((4, 1, 1, 1), 1.0)
    assert crps_of_quantiles(quantiles, LEVELS, torch.full((1, 1, 1), 3.5)) == pytest.approx(2.5)
    assert crps_of_quantiles(quantiles, LEVELS, torch.full((1, 1, 1), 1.0)) == 0.0


def test_dense_quantiles_have_the_crps_of_the_distribution() -> None:
    """And twice the mean quantile loss is nearly that."""
    levels = [(i + 0.5) / 2000 for i in range(2000)]
    quantiles = torch.tensor(stats.norm.ppf(levels)).view(-1, 1, 1, 1)
    true = 0.7
    exact = true * (2 * stats.norm.cdf(true) - 1) + 2 * stats.norm.pdf(true) - 1 / math.sqrt(math.pi)
    truth = torch.full((1, 1, 1), true, dtype=torch.float64)
    assert crps_of_quantiles(quantiles, levels, truth) == pytest.approx(exact, rel=1e-3)
    assert 2 * quantile_loss(quantiles, levels, truth) == pytest.approx(exact, rel=1e-3)


def test_quantile_loss_is_that_of_sklearn(case: Any) -> None:
    losses = pytest.importorskip("sklearn.metrics")
    samples, truth = case
    quantiles = samples.quantile(torch.tensor(LEVELS), 0)
    known = ~truth.isnan()
    theirs = [
        losses.mean_pinball_loss(truth[known].numpy(), quantile[known].numpy(), alpha=level)
        for quantile, level in zip(quantiles, LEVELS, strict=True)
    ]
    assert quantile_loss(quantiles, LEVELS, truth) == pytest.approx(np.mean(theirs), rel=1e-5)


def test_coverage_counts_the_ends_and_no_missing_truth() -> None:
    truth = torch.tensor([0.0, 1.0, 2.0, 3.0, torch.nan]).view(-1, 1, 1)
    assert coverage(torch.full_like(truth, 1.0), torch.full_like(truth, 2.0), truth) == 0.5
    assert math.isnan(coverage(truth, truth, torch.full_like(truth, torch.nan)))
    assert math.isnan(coverage(torch.full_like(truth, torch.nan), truth, torch.zeros_like(truth)))


def test_errors_of_points(case: Any) -> None:
    samples, truth = case
    gaps = (samples[0].double() - truth.double()).numpy()
    assert mae(samples[0], truth) == pytest.approx(np.nanmean(np.abs(gaps)), rel=1e-12)
    assert rmse(samples[0], truth) == pytest.approx(np.sqrt(np.nanmean(gaps**2)), rel=1e-12)


def test_mase_of_the_seasonal_naive_is_1_on_its_own_history() -> None:
    history = torch.randn(12, B, X, generator=torch.Generator().manual_seed(1))
    history[3, 1] = torch.nan
    scale = seasonal_scale(history, 4)
    assert scale.shape == (B, X)
    gaps = (history[4:].double() - history[:-4].double()).numpy()
    np.testing.assert_allclose(scale.numpy(), np.nanmean(np.abs(gaps), 0), rtol=1e-12)
    for b in range(B):
        known = ~(history[4:, b] + history[:-4, b]).isnan()  # of the pairs that the scale is made of
        truth = torch.where(known, history[4:, b], torch.nan)[:, None]
        predicted = torch.where(known, history[:-4, b], 0.0)[:, None]
        scores = [mase(predicted[..., c : c + 1], truth[..., c : c + 1], scale[b, c : c + 1]) for c in range(X)]
        assert scores == pytest.approx([1.0] * X)


def test_a_constant_series_has_no_part_in_mase() -> None:
    history = torch.stack((torch.arange(6.0), torch.ones(6)), -1)[:, None]
    scale = seasonal_scale(history, 1)
    assert scale.tolist() == [[1.0, 0.0]]
    truth = torch.tensor([[[6.0, 1.0]]])
    assert mase(truth + 0.5, truth, scale) == 0.5
    assert math.isnan(mase(truth, truth, seasonal_scale(history, 6)))


SCORES: dict[str, Callable[..., float]] = {
    "crps": lambda samples, truth, **more: crps(samples, truth, **more),
    "crps_of_quantiles": lambda samples, truth, **more: crps_of_quantiles(
        samples.sort(0).values[: len(LEVELS)], LEVELS, truth, **more
    ),
    "quantile_loss": lambda samples, truth, **more: quantile_loss(samples[: len(LEVELS)], LEVELS, truth, **more),
    "coverage": lambda samples, truth, **more: coverage(samples[0] - 1, samples[0] + 1, truth, **more),
    "mae": lambda samples, truth, **more: mae(samples[0], truth, **more),
    "rmse": lambda samples, truth, **more: rmse(samples[0], truth, **more),
    "mase": lambda samples, truth, **more: mase(samples[0], truth, torch.arange(1.0, 1 + X), **more),
}


@pytest.mark.parametrize("name", SCORES)
def test_padding_does_not_count_and_layouts_agree(name: str, case: Any) -> None:
    samples, truth = case
    score = SCORES[name]
    lengths = torch.tensor([5, 0, 3])
    cut = truth.clone()
    cut[:, 1] = cut[3:, 2] = torch.nan
    padded = score(samples, truth, lengths=lengths)
    assert padded == score(samples, cut) != score(samples, truth)
    swapped = {"lengths": lengths, "batch_first": True}
    assert score(samples.transpose(1, 2), truth.transpose(0, 1), **swapped) == pytest.approx(padded, rel=1e-12)
    assert math.isnan(score(samples, torch.full_like(truth, torch.nan)))


def test_the_scale_knows_layouts_and_lengths() -> None:
    history = torch.randn(6, B, X, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([6, 2, 4])
    scale = seasonal_scale(history, 2, lengths=lengths)
    swapped = seasonal_scale(history.transpose(0, 1), 2, lengths=lengths, batch_first=True)
    torch.testing.assert_close(swapped, scale, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(scale[2], seasonal_scale(history[:4], 2)[2])
    assert bool(scale[1].isnan().all())


@pytest.mark.parametrize("name", [name for name in SCORES if name != "rmse"])
def test_a_wrong_shape_is_named(name: str, case: Any) -> None:
    samples, truth = case
    with pytest.raises(ValueError, match=r"(samples|quantiles|lower|predicted) must have shape \[.*T, B, X\] = "):
        SCORES[name](samples[:, :4], truth)
    with pytest.raises(ValueError, match=r"truth must have shape \[T, B, X\], got \[5\]"):
        SCORES[name](samples, truth[:, 0, 0])


def test_what_makes_no_sense_is_named(case: Any) -> None:
    samples, truth = case
    with pytest.raises(ValueError, match="samples must hold 2 samples at least"):
        crps(samples[:1], truth)
    with pytest.raises(ValueError, match=r"levels must be rising numbers in \(0, 1\), got \[0.5, 0.1\]"):
        quantile_loss(samples[:2], (0.5, 0.1), truth)
    with pytest.raises(ValueError, match="levels must be as many as the quantiles, 3, got 2"):
        crps_of_quantiles(samples[:3], (0.1, 0.5), truth)
    with pytest.raises(ValueError, match=r"scale must have shape \[B, X\] = \[3, 2\] or \[X\]"):
        mase(samples[0], truth, torch.ones(3))
    with pytest.raises(ValueError, match="season must be an int of at least 1"):
        seasonal_scale(truth, 0)
