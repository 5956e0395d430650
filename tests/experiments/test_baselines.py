"""Naive predictors of series."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vssn.experiments.baselines import linear_interpolation, seasonal_naive

NAN = float("nan")


def series(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def test_seasonal_naive_repeats_the_last_season() -> None:
    history = torch.arange(10.0).view(-1, 1, 1).repeat(1, 2, 1)
    assert seasonal_naive(history, 5, 3)[:, 1, 0].tolist() == [7, 8, 9, 7, 8]
    assert seasonal_naive(history, 2)[:, 0, 0].tolist() == [9, 9]


def test_seasonal_naive_takes_an_earlier_season_where_a_value_is_missing() -> None:
    assert seasonal_naive(series(0, 1, 2, 3, NAN, NAN), 3, 3).flatten().tolist() == [3, 1, 2]
    assert seasonal_naive(series(NAN, 1, NAN, 3), 4, 4).flatten().tolist() == [3, 1, 3, 3]  # a phase never seen
    assert seasonal_naive(series(5, 6), 4, 4).flatten().tolist() == [6, 6, 5, 6]  # shorter than a season
    assert bool(seasonal_naive(series(NAN, NAN), 2, 2).isnan().all())


def test_interpolation_is_that_of_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, 2, generator=generator)
    missing = torch.rand(x.shape, generator=generator) < 0.5
    missing[:2, 0], missing[-3:, 1] = True, True
    filled = linear_interpolation(torch.where(missing, torch.nan, x))
    for b in range(3):
        for c in range(2):
            gone, true = missing[:, b, c].numpy(), x[:, b, c].double().numpy()
            want = np.interp(np.arange(40), np.nonzero(~gone)[0], true[~gone])
            np.testing.assert_allclose(filled[:, b, c].numpy(), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(filled[~missing], x[~missing])
    assert bool(linear_interpolation(series(NAN, NAN)).isnan().all())


def test_what_is_no_series_is_named() -> None:
    with pytest.raises(ValueError, match=r"history must have shape \[T, B, X\] with a step at least, got \[3\]"):
        seasonal_naive(torch.zeros(3), 1)
    with pytest.raises(TypeError, match=r"history must be floating point, got torch\.int64"):
        seasonal_naive(torch.zeros(3, 1, 1, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="season must be an int of at least 1"):
        seasonal_naive(series(1, 2), 1, 0)
    with pytest.raises(ValueError, match=r"x must have shape \[T, B, X\]"):
        linear_interpolation(torch.zeros(0, 1, 1))
